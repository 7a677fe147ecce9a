"""Recipes: the options of one `fit`, kept in a TOML file and run by name."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.files import parse_size

SUFFIX = ".toml"


@dataclass(frozen=True)
class Recipe:
    """Options of `fit` under their long names. None: the recipe leaves the option to the command line's default.

    `size` and `ram` are bytes here; in the file they are written like on the command line ("64MB", "64MiB", or a
    number of bytes).
    """

    name: str
    summary: str
    model: str
    size: int | None = None
    ram: int | None = None
    context: int | None = None
    prompt_chunk: int | None = None
    min_decode_tps: float | None = None
    device: str | None = None
    calibration: tuple[str, ...] | None = None
    calibration_windows: int | None = None
    calibration_window: int | None = None
    method: str | None = None
    allocation: str | None = None
    candidates: str | None = None
    seed: int | None = None

    def options(self) -> dict[str, Any]:
        """What the recipe sets, without its name, summary and model."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: v for k, v in named.items() if v is not None and k not in ("name", "summary", "model")}


# What each key may hold in the file, and how that is said to a person.
_NUMBERS = ("context", "prompt_chunk", "calibration_windows", "calibration_window", "seed", "min_decode_tps")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **{key: ((str,), "a string") for key in ("summary", "model", "device", "method", "allocation", "candidates")},
    **{key: ((str, int), 'a size like "64MB"') for key in ("size", "ram")},
    **{key: ((int,), "a whole number") for key in _NUMBERS},
    "min_decode_tps": ((int, float), "a number"),
    "calibration": ((str, list), "a source or a list of sources"),
}


def list_recipes() -> tuple[Recipe, ...]:
    """The recipes that come with the package, by name. Raises InputError where one of them is not valid."""
    return tuple(load_recipe(name) for name in _names())


def load_recipe(name: str) -> Recipe:
    """A recipe of the package by name, or any file whose path ends in .toml.

    Raises InputError that lists the known names, or names the file and the key at fault.
    """
    if name.endswith(SUFFIX):
        path = Path(name)
        try:
            return parse_recipe(path.read_bytes(), path.stem, name)
        except OSError as error:
            raise InputError(f"Cannot read the recipe {name}: {error.strerror}.") from error
    if name not in _names():
        raise InputError(f"Unknown recipe {name!r}; known: {', '.join(_names())}; a path that ends in .toml works too.")
    file = name + SUFFIX
    return parse_recipe((resources.files("edge_svd.recipes") / file).read_bytes(), name, file)


def parse_recipe(content: bytes, name: str, file: str) -> Recipe:
    """The recipe in a TOML file's bytes; `file` is what messages call it. Raises InputError naming key and file."""
    try:
        table: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"The recipe {file} is not valid TOML: {error}.") from error
    for key, value in table.items():
        if key not in _KINDS:
            raise InputError(f"The recipe {file} has an unknown key {key!r}; known: {', '.join(_KINDS)}.")
        kinds, words = _KINDS[key]
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise InputError(f"The key {key!r} of the recipe {file} must be {words}, not {value!r}.")
        if key in _NUMBERS and not (table[key] > 0 or key == "seed" and table[key] == 0):  # NaN is neither
            raise InputError(f"The key {key!r} of the recipe {file} must be positive, not {value}.")
    for key in ("model", "summary"):
        if not table.get(key):
            raise InputError(f"The recipe {file} lacks the key {key!r}.")
    if "size" not in table and "ram" not in table:
        raise InputError(f"The recipe {file} sets no budget; give it a key 'size' or 'ram'.")
    for key in ("size", "ram"):
        if key in table:
            try:
                table[key] = parse_size(str(table[key]))
            except InputError as error:
                raise InputError(f"The key {key!r} of the recipe {file} is not a size: {error}") from error
    if "calibration" in table:
        table["calibration"] = _sources(table["calibration"], file)
    return Recipe(name=name, **table)


def _sources(value: str | list[Any], file: str) -> tuple[str, ...]:
    sources = [value] if isinstance(value, str) else value
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise InputError(f"The key 'calibration' of the recipe {file} must be a source or a list of sources.")
    return tuple(sources)


def _names() -> tuple[str, ...]:
    folder = resources.files("edge_svd.recipes")
    return tuple(sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX)))
