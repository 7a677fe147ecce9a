"""What the ways of carrying out a comparison's cells have in common."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from edge_svd.compare.asked import Cell
from edge_svd.compare.rows import Row


@dataclass(frozen=True)
class Made:
    """A cell carried out: what is recorded of it beside the measurements ("parameters", "budget", "ranks", "seconds",
    and "bytes" or "healing" where there are any), and the model in its shape for a while."""

    cell: Cell
    record: Row
    placed: Callable[[], AbstractContextManager[Any]]


class Maker(Protocol):
    """Carries out cells of one method."""

    def made(self, method: str, cells: Sequence[Cell]) -> Generator[Made, None, None]:
        """Every cell, one after the other; what a cell takes may be gone when the next one is asked for."""
        ...
