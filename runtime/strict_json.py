"""JSON from an untrusted file: no duplicate keys, no NaN or infinity, no bottomless nesting, no broken text."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 64
"""Deepest nesting accepted; Python's own parser and printer give up at different depths, so the limit is ours."""


class JsonError(ValueError):
    """What is wrong with the text, as the end of a sentence."""


def parse(data: bytes, *, max_bytes: int) -> Any:
    """The value in `data` (UTF-8, at most `max_bytes`); JsonError says what is wrong."""
    if len(data) > max_bytes:
        raise JsonError(f"is larger than {max_bytes} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)
    except JsonError:
        raise
    except (RecursionError, MemoryError):
        raise JsonError("is nested too deeply") from None
    except ValueError as error:
        raise JsonError(f"is not JSON ({error})") from None
    check(value)
    return value


def check(value: Any) -> None:
    """JsonError unless `value` nests at most MAX_DEPTH deep and holds only finite numbers and valid text."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise JsonError(f"is nested more than {MAX_DEPTH} deep")
        if isinstance(item, dict):
            for key, inner in item.items():
                if not isinstance(key, str):
                    raise JsonError(f"has a key that is not text ({key!r})")
                _encodable(key)
                stack.append((inner, depth + 1))
        elif isinstance(item, (list, tuple)):
            stack.extend((inner, depth + 1) for inner in item)
        elif isinstance(item, str):
            _encodable(item)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise JsonError("holds a number that is not finite")
        elif item is not None and not isinstance(item, (bool, int)):
            raise JsonError(f"holds a {type(item).__name__}, which JSON cannot express")


def dump(value: Any) -> bytes:
    """Deterministic compact UTF-8 with sorted keys and a final newline."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise JsonError(f"has the key {key[:80]!r} twice")
            seen.add(key)
    return result


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"holds the number {text[:40]}, which is not finite")
    return value


def _constant(text: str) -> float:
    raise JsonError(f"holds {text}, which is not JSON")


def _encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise JsonError("holds half a surrogate pair") from None
