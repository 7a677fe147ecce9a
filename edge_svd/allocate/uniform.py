"""`uniform`: the same share of parameters kept in every matrix, as SVD-LLM and most of its followers report."""

from __future__ import annotations

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field, by_shares
from edge_svd.allocate.strategy import ALLOCATIONS


class Uniform(ByKl):
    """Keep the same share of parameters in every matrix."""

    def rule(self, field: Field, budget: int) -> list[int] | None:
        return by_shares(field, lambda ratio: [ratio] * len(field.full), budget)


ALLOCATIONS.register("uniform")(Uniform())
