"""The ranks of a comparison as cells of a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_svd.compare.storage import PLAIN, parameters
from edge_svd.report.heat_map import Cell
from edge_svd.report.palette import FULL_BITS

FAMILIES = ("factored", "whole")


@dataclass(frozen=True)
class RankCell(Cell):
    """`bits` is the kept share of the parameters, on the scale of the tints."""

    @property
    def tip(self) -> str:
        m, n = self.shape
        kept = f"rank {self.rank} of {min(m, n)}" if self.family == "factored" else "whole"
        return f"{self.name} ({m} x {n}): {kept}, {self.bits / FULL_BITS:.0%} of its parameters"


def rank_cells(
    matrices: Sequence[Mapping[str, Any]], ranks: Mapping[str, int | None], factors: str | None
) -> list[Cell]:
    """A cell a matrix, in forward order; `ranks` says None where one stays whole, `factors` how they are stored."""
    found: list[Cell] = []
    for matrix in matrices:
        m, n = matrix["shape"]
        rank = ranks[matrix["name"]]
        share = 1.0 if rank is None else parameters((m, n), rank, factors or PLAIN) / (m * n)
        family = FAMILIES[rank is None]
        found.append(
            RankCell(
                matrix["name"],
                matrix["type"],
                matrix["layer"],
                (m, n),
                family,
                family,
                min(m, n) if rank is None else rank,
                FULL_BITS * share,
                0,
                0.0,
            )
        )
    return found
