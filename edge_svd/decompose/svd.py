"""`svd`: the truncated singular value decomposition (Eckart and Young 1936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided


@DECOMPOSITIONS.register("svd")
@dataclass(frozen=True)
class Svd(TwoSided):
    """Plain truncated SVD: least ‖W - BA‖_F at every rank; looks at no data.

    Eckart and Young 1936, eq. 10: keeping k components loses the sum of the remaining σ².
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def sides(self, w: Matrix, site: Measured) -> Sides:
        return Sides(None, None)
