"""Named implementations: `@REGISTRY.register("name")` adds one, `REGISTRY["name"]` finds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Generic, TypeVar, cast

from edge_svd.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """One kind of thing by name. A second registration of a name is a programming error and refused (ValueError)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a function or class under `name`."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"The {self.kind} {name!r} is registered twice.")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """The entry of that name. Raises InputError that lists the known names."""
        if name not in self._entries:
            raise InputError(f"Unknown {self.kind} {name!r}; known: {', '.join(self.names)}.")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The known names, in the order of registration."""
        return tuple(self._entries)

    def summary(self, name: str) -> str:
        """First line of the entry's docstring, for lists on the command line."""
        return (self[name].__doc__ or "").strip().split("\n")[0]


def parametrised(registry: Registry[Callable[..., T]], name: str, **parameters: float) -> T:
    """The entry of that name, a dataclass whose fields are numbers, made with these parameters or those of
    `NAME:PARAMETER=VALUE,…`.

    Raises InputError that lists the known names or parameters, or says which value is out of range.
    """
    name, _, given = name.partition(":")
    made = registry[name]
    known = [field.name for field in fields(cast(Any, made))]
    asked = dict(parameters)
    for part in given.split(",") if given else ():
        key, _, value = part.partition("=")
        try:
            asked[key.strip()] = float(value)
        except ValueError:
            raise InputError(f"{part!r} is no parameter of {name}; write {name}:PARAMETER=VALUE.") from None
    for key, number in asked.items():
        if key not in known:
            has = f"known: {', '.join(known)}" if known else "it has none"
            raise InputError(f"The {registry.kind} {name} has no parameter {key!r}; {has}.")
        if not math.isfinite(number):
            raise InputError(f"The parameter {key} of {name} must be a finite number, not {number}.")
    return made(**asked)


def within(value: float, low: float, high: float, name: str) -> None:
    """Raises InputError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        limit = f"between {low:g} and {high:g}" if math.isfinite(high) else f"at least {low:g}"
        raise InputError(f"The {name} must be {limit}, not {value}.")
