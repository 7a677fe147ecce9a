"""Files of multiple-choice items: JSONL, one object a line, plain or gzipped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.runtime import strict_json
from edge_svd.runtime.errors import InputError
from edge_svd.runtime.text import read_text

MAX_LINE_BYTES = 16_000_000


@dataclass(frozen=True)
class TaskItem:
    """One question, whatever its form: continuation i is scored behind context i.

    Attributes:
        where: the item's name in messages.
        contexts: one a choice; all the same unless the evaluation is partial (WinoGrande).
        continuations: as many, with the spaces that they begin with; all the same where it is partial.
        gold: which choice is right. An item of a single choice asks whether the model would say it (LAMBADA).
        labels: which choices are true, where several may be (TruthfulQA mc2).
    """

    where: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    labels: tuple[bool, ...] | None = None


def read_items(path: Path | str) -> tuple[TaskItem, ...]:
    """The items of a file; blank lines are passed over, and so are fields without a meaning here.

    Every item has `id` (text or an integer), `gold` (from 0) and either `context` and `choices`, or, for partial
    evaluation, `contexts` and one `continuation`. `labels` holds a 0 or 1 for every choice.

    InputError naming the file, and the line where there is one, if anything else stands there.
    """
    items = []
    for number, line in enumerate(read_text(path, "task file").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = strict_json.parse(line.encode(), max_bytes=MAX_LINE_BYTES)
            items.append(_item(value, f"line {number} of {path}"))
        except (strict_json.JsonError, _Fault) as fault:
            raise InputError(f"Line {number} of the task file {path} {fault}.") from None
    return tuple(items)


def strided(items: Sequence[TaskItem], limit: int | None) -> tuple[TaskItem, ...]:
    """`limit` of the items, evenly spread from the first one on: files are often ordered by subject or source.

    Item ⌊i · len / limit⌋ for i < limit; all of them without a limit, or where there are no more.
    """
    if limit is None or limit >= len(items):
        return tuple(items)
    if limit < 1:
        raise InputError(f"The limit must be at least 1 item, not {limit}.")
    return tuple(items[i * len(items) // limit] for i in range(limit))


class _Fault(Exception):
    """What is wrong with a line, as the end of a sentence."""


def _item(value: Any, line: str) -> TaskItem:
    if not isinstance(value, dict):
        raise _Fault("is not an object")
    name = _field(value, "id")
    if not isinstance(name, (str, int)) or isinstance(name, bool):
        raise _Fault("has an 'id' that is neither text nor an integer")
    if "contexts" in value or "continuation" in value:
        contexts = _texts(value, "contexts")
        continuations = (_text(value, "continuation"),) * len(contexts)
    else:
        continuations = _texts(value, "choices")
        contexts = (_text(value, "context"),) * len(continuations)
    if not all(text.removeprefix(" ") for text in continuations):
        raise _Fault("has a choice without any text")
    gold, count = _field(value, "gold"), len(continuations)
    if type(gold) is not int or not 0 <= gold < count:
        raise _Fault(f"has the gold {str(gold)[:40]}, which is none of its choices 0 to {count - 1}")
    return TaskItem(f"item {str(name)[:80]!r} ({line})", contexts, continuations, gold, _labels(value, count))


def _labels(value: dict[str, Any], count: int) -> tuple[bool, ...] | None:
    if "labels" not in value:
        return None
    labels = value["labels"]
    if (
        not isinstance(labels, list)
        or len(labels) != count
        or any(type(x) is not int or x not in (0, 1) for x in labels)
    ):
        raise _Fault(f"has 'labels' that are not {count} zeros and ones, one a choice")
    if len(set(labels)) == 1:
        raise _Fault("has 'labels' that are all the same")
    return tuple(bool(label) for label in labels)


def _field(value: dict[str, Any], name: str) -> Any:
    if name not in value:
        raise _Fault(f"lacks the field {name!r}")
    return value[name]


def _text(value: dict[str, Any], name: str) -> str:
    text = _field(value, name)
    if not isinstance(text, str):
        raise _Fault(f"has a {name!r} that is no text")
    return text


def _texts(value: dict[str, Any], name: str) -> tuple[str, ...]:
    texts = _field(value, name)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _Fault(f"has {name!r} that are no list of texts")
    return tuple(texts)
