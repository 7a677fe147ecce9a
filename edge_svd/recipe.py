"""Recipes: the options of one `fit`, kept in a TOML file and run by name."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from edge_svd.errors import InputError
from edge_svd.files import parse_size
from edge_svd.recipe_lines import fault_line, key_lines, without_line

SUFFIX = ".toml"
LARGEST_FILE = 64 * 1024
LARGEST_NUMBER = 2**31 - 1
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Recipe:
    """Options of `fit` under their long names. None: the recipe leaves the option to the command line's default.

    `size` and `ram` are bytes here; in the file they are written like on the command line ("64MB", "64MiB", or a
    number of bytes). `file` and `lines` (key → line, from 1) are for messages about a value.
    """

    name: str
    summary: str
    model: str
    size: int | None = None
    ram: int | None = None
    context: int | None = None
    prompt_chunk: int | None = None
    min_decode_tps: float | None = None
    min_prefill_tps: float | None = None
    device: str | None = None
    calibration: tuple[str, ...] | None = None
    calibration_windows: int | None = None
    calibration_window: int | None = None
    method: str | None = None
    allocation: str | None = None
    candidates: str | None = None
    seed: int | None = None
    tune: float | None = None
    refine: bool | None = None
    rotate: bool | None = None
    kv_cache: str | None = None
    file: str = field(default="", compare=False, repr=False)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def options(self) -> dict[str, Any]:
        """What the recipe sets, without its name, summary and model."""
        named = {key: getattr(self, key) for key in _KINDS}
        return {k: v for k, v in named.items() if v is not None and k not in ("summary", "model")}

    def where(self, key: str) -> str:
        """`file:line` of a key that the recipe sets."""
        return f"{self.file}:{self.lines[key]}" if key in self.lines else self.file


@dataclass(frozen=True)
class _Kind:
    """What a key may hold, how that is said to a person, and an example."""

    types: tuple[type, ...]
    words: str
    example: str


_TEXT, _COUNT = (str,), (int,)
_KINDS: dict[str, _Kind] = {
    "summary": _Kind(_TEXT, "a string", '"Model M in 110 MB"'),
    "model": _Kind(_TEXT, "a string", '"a hub id or a folder"'),
    "size": _Kind((str, int), 'a size like "64MB"', '"110MB"'),
    "ram": _Kind((str, int), 'a size like "64MB"', '"300MB"'),
    "context": _Kind(_COUNT, "a whole number", "2048"),
    "prompt_chunk": _Kind(_COUNT, "a whole number", "64"),
    "kv_cache": _Kind(_TEXT, "a string", '"int8"'),
    "min_decode_tps": _Kind((int, float), "a number", "5.0"),
    "min_prefill_tps": _Kind((int, float), "a number", "50.0"),
    "device": _Kind(_TEXT, "a string", '"a device\'s name"'),
    "calibration": _Kind((str, list), "a source or a list of sources", '["self"]'),
    "calibration_windows": _Kind(_COUNT, "a whole number", "128"),
    "calibration_window": _Kind(_COUNT, "a whole number", "512"),
    "method": _Kind(_TEXT, "a string", '"io-svd"'),
    "allocation": _Kind(_TEXT, "a string", '"second-order"'),
    "candidates": _Kind(_TEXT, "a string", '"low-rank,int8"'),
    "seed": _Kind(_COUNT, "a whole number", "0"),
    "tune": _Kind((int, float), "a number", "2.0"),
    "refine": _Kind((bool,), "true or false", "true"),
    "rotate": _Kind((bool,), "true or false", "true"),
}
_NEEDED = ("summary", "model")
_BUDGETS = ("size", "ram")


def list_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with the package, by name. Raises InputError where one of them is not valid."""
    return tuple(load_recipe(name) for name in _names())


def load_recipe(name: str) -> Recipe:
    """A recipe of the package by name, or any file whose path ends in .toml.

    Raises InputError that lists the known names, or points at the file, the line and the key at fault.
    """
    if name.endswith(SUFFIX):
        path = Path(name)
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                raise InputError(f"Cannot read the recipe {name}: it is not a file.")
            with path.open("rb") as handle:
                content = handle.read(LARGEST_FILE + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"Cannot read the recipe {name}: {reason}.") from error
        return parse_recipe(content, path.stem, name)
    names = _names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        guess = f" (did you mean {near[0]!r}?)" if near else ""
        raise InputError(
            f"Unknown recipe {name!r}{guess}; known: {', '.join(names)}; a path that ends in .toml works too."
        )
    file = name + SUFFIX
    return parse_recipe((resources.files("edge_svd.recipes") / file).read_bytes(), name, file)


def parse_recipe(content: bytes, name: str, file: str) -> Recipe:
    """The recipe in a TOML file's bytes; `file` is what messages call it.

    Raises InputError of the form `file:line: what is wrong; what to do`.
    """
    if len(content) > LARGEST_FILE:
        raise InputError(f"The recipe {file} is larger than {LARGEST_FILE} bytes; a recipe holds a few options.")
    text, table = _table(content, file)
    lines = key_lines(text)

    def refuse(key: str, words: str) -> NoReturn:
        raise InputError(f"{file}:{lines[key]}: {words}" if key in lines else f"The recipe {file}: {words}")

    for key, value in table.items():
        if key not in _KINDS:
            near = difflib.get_close_matches(key, _KINDS, 1, 0.5)
            guess = f" (did you mean {near[0]!r}?); rename it or remove that line." if near else ""
            known = f"; known keys: {', '.join(_KINDS)}."
            refuse(key, f"unknown key {_shown(key)}{guess or known}")
        wrong = _wrong(key, value)
        if wrong:
            refuse(key, f"the key {key!r} must be {wrong}, not {_shown(value)}; for instance {_example(key)}.")
    for key in _NEEDED:
        if key not in table:
            raise InputError(f"The recipe {file} lacks the key {key!r}; add a line like {_example(key)}.")
    if not any(key in table for key in _BUDGETS):
        raise InputError(f"The recipe {file} sets no budget; add a line like {_example('size')}.")
    for key in _BUDGETS:
        if key in table:
            try:
                table[key] = parse_size(str(table[key]))
            except InputError as error:
                refuse(key, f"the key {key!r} is not a size: {error}")
    if isinstance(table.get("calibration"), str):
        table["calibration"] = [table["calibration"]]
    if "calibration" in table:
        table["calibration"] = tuple(table["calibration"])
    return Recipe(name=name, **table, file=file, lines=lines)


def _table(content: bytes, file: str) -> tuple[str, dict[str, Any]]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        at = content[: error.start].count(b"\n") + 1
        raise InputError(f"{file}:{at}: not valid TOML: a byte that is not UTF-8; save the file as UTF-8.") from None
    try:
        return text, tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, and what Python says to a number of thousands of digits
        line = fault_line(error, text)
        where = f"{file}:{line}" if line is not None else f"The recipe {file}"
        raise InputError(f"{where}: not valid TOML: {without_line(error)}; correct that line.") from None
    except RecursionError:
        raise InputError(f"The recipe {file} is not valid TOML: it is nested too deeply.") from None


def _wrong(key: str, value: Any) -> str | None:
    """What the value should have been, or None if it is that."""
    kind = _KINDS[key]
    if type(value) not in kind.types:  # a bool is an int to isinstance
        return kind.words
    if isinstance(value, str) and not (value.strip() and value.isprintable()):
        return "one line of text"
    if isinstance(value, list):
        return None if value and all(isinstance(v, str) and _wrong(key, v) is None for v in value) else kind.words
    if key in _BUDGETS or isinstance(value, str | bool):
        return None
    if key == "seed":
        return None if 0 <= value <= LARGEST_SEED else f"zero or positive, at most {LARGEST_SEED}"
    if not (value > 0 and math.isfinite(value) and value <= LARGEST_NUMBER):  # NaN compares as false
        return f"positive and at most {LARGEST_NUMBER}"
    return None


def _example(key: str) -> str:
    return f"{key} = {_KINDS[key].example}"


def _shown(value: Any) -> str:
    """A value in a message: short, on one line."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested deeply; an integer that Python will not print
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _names() -> tuple[str, ...]:
    folder = resources.files("edge_svd.recipes")
    return tuple(sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX)))
