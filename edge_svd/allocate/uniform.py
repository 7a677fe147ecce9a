"""`uniform`: the same share of parameters kept in every matrix, as SVD-LLM and most of its followers report."""

from __future__ import annotations

from edge_svd.allocate.second_order import SecondOrder
from edge_svd.allocate.strategy import ALLOCATIONS


class Uniform(SecondOrder):
    """Keep the same share of parameters in every matrix."""

    same_ratio = True


ALLOCATIONS.register("uniform")(Uniform())
