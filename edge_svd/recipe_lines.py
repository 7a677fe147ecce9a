"""On which line of a TOML file each top-level key stands; tomllib says it for broken files only."""

from __future__ import annotations

import re
import tomllib

_AT = re.compile(r"\(at line (\d+), column \d+\)")
_END = "(at end of document)"


def key_lines(text: str) -> dict[str, int]:
    """Top-level key → the line, from 1, on which it is first set, for a text that is valid TOML.

    Statements end where what was read since the last one parses alone: values may span lines.
    """
    found: dict[str, int] = {}
    statement: list[str] = []
    inside = False
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        statement.append(line)
        try:
            table = tomllib.loads("\n".join(statement))
        except tomllib.TOMLDecodeError:
            continue
        if table and (not inside or _is_header(statement)):
            first = number - len(statement) + 1
            for key in table:
                found.setdefault(key, first)
            inside = _is_header(statement)
        statement = []
    return found


def fault_line(error: ValueError, text: str) -> int | None:
    """The line that tomllib complains about; None if it names none."""
    match = _AT.search(str(error))
    if match:
        return int(match.group(1))
    return text.count("\n") + 1 if _END in str(error) else None


def without_line(error: ValueError) -> str:
    """What tomllib complains about, without where."""
    return _AT.sub("", str(error)).replace(_END, "").strip()


def _is_header(statement: list[str]) -> bool:
    """Whether these lines open a table: the keys behind them are no longer top-level."""
    return statement[-1].lstrip().startswith("[") and len(statement) == 1
