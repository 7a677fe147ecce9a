"""Where calibration text comes from: files, prompts and data sets, read as documents and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edge_svd.companions import chat_template
from edge_svd.errors import InputError
from edge_svd.models import hub_resolves, quiet
from edge_svd.runtime.text import read_text

SELF = "self"
HUB = "hub:"
FIELDS = ("prompt", "turns", "messages", "text", "content", "question", "instruction")


@dataclass(frozen=True)
class Source:
    """`self`, `hub:DATASET` or the path of a file, and its share of the windows relative to the other sources."""

    spec: str
    weight: float = 1.0


def parse_source(text: str) -> Source:
    """`SRC[:WEIGHT]`; a colon belongs to the source unless a number follows the last one. InputError on a weight
    that is none.
    """
    head, colon, tail = text.rpartition(":")
    spec, weight = text, 1.0
    if colon and head and head != HUB.removesuffix(":") and not Path(text).exists():
        try:
            weight, spec = float(tail), head
        except ValueError:
            pass
    if not math.isfinite(weight) or weight <= 0:
        raise InputError(f"The calibration source {text!r} has the weight {tail}; weights must be positive numbers.")
    if not spec.strip() or spec == HUB:
        raise InputError(f"The calibration source {text!r} is empty; give a file, hub:DATASET or self.")
    return Source(spec, weight)


def documents(source: Source, tokenizer: Any, limit: int) -> list[tuple[str, bool]]:
    """The texts of a file or data set, each with whether it goes through the chat template; about `limit`
    characters of a data set.
    """
    if source.spec.startswith(HUB):
        return list(_hub(source.spec.removeprefix(HUB), tokenizer, limit))
    path = Path(source.spec).expanduser()
    text = _read(path)
    if ".jsonl" in path.suffixes[-2:]:
        return list(_prompts(text, path, tokenizer))
    return [(text, False)]


def _read(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"The calibration file {path} does not exist; give a file, hub:DATASET or self.")
    return read_text(path, "calibration file")


def _prompts(text: str, path: Path, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"Line {number} of {path} is not JSON.") from None
        found = list(_texts(record, tokenizer)) if isinstance(record, Mapping) else []
        if not found:
            raise InputError(f"Line {number} of {path} has none of the fields {', '.join(FIELDS[:4])} with text in it.")
        yield from found


def _texts(record: Mapping[str, Any], tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """The first known field of a record that holds text."""
    for field in FIELDS:
        value = record.get(field)
        plain = field in ("text", "content")
        if isinstance(value, str) and value.strip():
            yield (value, False) if plain else _turn([{"role": "user", "content": value}], tokenizer)
            return
        if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
            for turn in value:  # bare turns are questions without their answers: each begins a conversation of its own
                yield _turn([{"role": "user", "content": turn}], tokenizer)
            return
        if (
            isinstance(value, list)
            and value
            and all(isinstance(turn, Mapping) and isinstance(turn.get("content"), str) for turn in value)
        ):
            yield _turn(
                [{"role": str(turn.get("role", "user")), "content": turn["content"]} for turn in value], tokenizer
            )
            return


def _turn(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, bool]:
    """A conversation as the model's chat template writes it; plain where there is no template or it refuses the
    roles.
    """
    template = chat_template(tokenizer)
    if template:
        try:
            return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)), True
        except Exception:  # noqa: S110 - a template raises whatever jinja2 or it likes
            pass
    return "\n".join(message["content"] for message in messages), False


def _hub(name: str, tokenizer: Any, limit: int) -> Iterator[tuple[str, bool]]:
    """Rows of `owner/name` or `owner/name@configuration`, split "train" or else the first, in their order."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            "Calibration from hub:DATASET needs the package datasets; install it with `pip install datasets`."
        ) from None
    if not hub_resolves():
        raise InputError(f"The data set {name!r} cannot be read: the Hugging Face hub is out of reach.")
    identity, _, configuration = name.partition("@")
    read = 0
    try:
        with quiet():
            splits = datasets.load_dataset(identity, configuration or None, streaming=True)
            rows = splits["train"] if "train" in splits else next(iter(splits.values()))
            for record in islice(rows, 1_000_000):
                for text, templated in _texts(record, tokenizer):
                    read += len(text)
                    yield text, templated
                if read >= limit:
                    return
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"The data set {name!r} cannot be read from the Hugging Face hub ({reason[:200]}).") from error
    if not read:
        raise InputError(f"The data set {name!r} has no field with text; known are {', '.join(FIELDS)}.")
