"""`svd`: the truncated singular value decomposition (Eckart and Young 1936)."""

from __future__ import annotations

from edge_svd.decompose.factorization import Factorization, Matrix
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import two_sided
from edge_svd.decompose.whitening import Metric


@DECOMPOSITIONS.register("svd")
def svd(w: Matrix, c_in: Metric | None, c_out: Metric | None, *, damping: float | None = None) -> Factorization:
    """Plain truncated SVD: least ‖W - BA‖_F at every rank; looks at no data.

    Eckart and Young 1936, eq. 10: keeping k components loses the sum of the remaining σ². c_in, c_out and damping are
    not used.
    """
    return two_sided(w, None, None)
