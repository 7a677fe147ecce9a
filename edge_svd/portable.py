"""Tokenizer and chat template in forms that onnxruntime-genai reads as transformers does.

Its tokenizer splits text by regular expressions alone, and its template engine keeps the whitespace that transformers'
trim_blocks and lstrip_blocks take away. Both are rewritten so that either reading gives the same.
"""

from __future__ import annotations

import json
from typing import Any

BYTE_LEVEL_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How a ByteLevel pre-tokenizer splits where it says use_regex."""


def portable_tokenizer(data: bytes) -> bytes:
    """A tokenizer.json in which steps that split off single digits, and words after them, are regular expressions.

    Unchanged where there is nothing to rewrite.
    """
    value = json.loads(data)
    steps = (value.get("pre_tokenizer") or {}).get("pretokenizers") or []
    if not any(step.get("type") == "Digits" and step.get("individual_digits") for step in steps):
        return data
    value["pre_tokenizer"]["pretokenizers"] = [part for step in steps for part in _as_splits(step)]
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _as_splits(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return [_split(r"\p{N}")]
    if step.get("type") == "ByteLevel" and step.get("use_regex", True) and not step.get("add_prefix_space"):
        return [_split(BYTE_LEVEL_WORDS), {**step, "use_regex": False}]
    return [step]


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def portable_template(source: str) -> str:
    """A chat template that says the same with trim_blocks and lstrip_blocks and without them.

    Whitespace that they, or minus signs in tags, take away is gone from the result, and comments with it; what would
    be taken away then, but must stay, is written as an expression. A template that does not parse, or has raw parts,
    is returned as it is.
    """
    from jinja2 import Environment, TemplateError

    try:
        tokens = list(Environment(trim_blocks=True, lstrip_blocks=True).lex(source))
    except TemplateError:
        return source
    if any(kind == "raw_begin" for _, kind, _ in tokens):
        return source
    parts: list[tuple[str, str]] = []
    comment = False
    for _, kind, text in tokens:
        if kind in ("comment_begin", "comment_end"):
            comment = kind == "comment_begin"
        elif not comment:
            if kind == "data" and parts and parts[-1][0] == "data":
                parts[-1] = ("data", parts[-1][1] + text)
            else:
                parts.append((kind, text))
    written = []
    for index, (kind, text) in enumerate(parts):
        before = parts[index - 1][0] if index else ""
        after = parts[index + 1][0] if index + 1 < len(parts) else ""
        if kind == "data":
            written.append(_kept(text, before, after))
        elif kind in _TAGS:
            # A sign for whitespace has done its work, but may have kept two braces from a third.
            space = "" if "whitespace" in (before, after) else " "
            written.append(_TAGS[kind] + space if kind.endswith("begin") else space + _TAGS[kind])
        else:
            written.append(text)
    return "".join(written)


_TAGS = {"block_begin": "{%", "block_end": "%}", "variable_begin": "{{", "variable_end": "}}"}


def _kept(text: str, before: str, after: str) -> str:
    """Data between two tokens, protected against being trimmed again."""
    head = tail = ""
    if before == "block_end" and text.startswith("\n"):
        head, text = _expression("\n"), text[1:]
    if after == "block_begin":
        line = text.rpartition("\n")[2]
        whole_line = "\n" in text or (not before and not head)
        if line and line.isspace() and (whole_line or head):
            text, tail = text[: len(text) - len(line)], _expression(line)
    if not after and text.endswith("\n"):  # jinja2 drops the last newline of a template
        text, tail = text[:-1], _expression("\n")
    return head + text + tail


def _expression(text: str) -> str:
    return "{{ " + json.dumps(text) + " }}"
