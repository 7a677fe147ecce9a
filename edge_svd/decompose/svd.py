"""`svd`: the truncated singular value decomposition (Eckart and Young 1936)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import two_sided


@DECOMPOSITIONS.register("svd")
@dataclass(frozen=True)
class Svd:
    """Plain truncated SVD: least ‖W - BA‖_F at every rank; looks at no data.

    Eckart and Young 1936, eq. 10: keeping k components loses the sum of the remaining σ².
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return two_sided(w, None, None, rank)
