"""`second-order`: prune by predicted KL per byte, a price that is comparable across matrices."""

from __future__ import annotations

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.strategy import ALLOCATIONS


class SecondOrder(ByKl):
    """Prune by predicted KL per byte (half a squared singular value of the two-sided metric)."""

    rule = None


ALLOCATIONS.register("second-order")(SecondOrder())
