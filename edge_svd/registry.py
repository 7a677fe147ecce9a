"""Named implementations: `@REGISTRY.register("name")` adds one, `REGISTRY["name"]` finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

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
