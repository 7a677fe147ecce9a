"""`io-svd`: SVD in the metric of the KL divergence, whitened on the input and on the output side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured, required
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import whiten

# Of the mean diagonal, on both sides. Large enough to hold the fp32 noise of the statistics down and to make Cholesky
# provably safe, and small enough to move the loss at half rank by 0.1 to 1% (five matrices of SmolLM2, layer 15).
DAMPING = 1e-4


@DECOMPOSITIONS.register("io-svd")
@dataclass(frozen=True)
class IoSvd(TwoSided):
    """IO-SVD: least tr(C_out E C_in Eᵀ), twice the predicted KL to the dense model, at every rank.

    arXiv 2605.15626, the IO-SVD construction: the SVD of C_out^½ W C_in^½, both sides undone.
    Any square roots F Fᵀ = C give the same product, so triangular ones are used. Half an energy is the KL, in nats per
    token, that dropping the component is predicted to cost. `damping` (1e-4) is a share of each mean diagonal; how
    C_out is estimated (its K, its samples) belongs to calibration.
    """

    damping: float = DAMPING
    needs: ClassVar[tuple[str, ...]] = ()

    def sides(self, w: Matrix, site: Measured) -> Sides:
        into = whiten(required(site.c_in, "c_in", "io-svd"), self.damping, "c_in")
        return Sides(into, whiten(required(site.c_out, "c_out", "io-svd"), self.damping, "c_out"))
