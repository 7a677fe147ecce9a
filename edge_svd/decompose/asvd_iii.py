"""`asvd-iii`: SVD in the eigenvectors of the input's second moment, all scaled alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured, required
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import Whitening, spectrum


@DECOMPOSITIONS.register("asvd-iii")
@dataclass(frozen=True)
class AsvdIii(TwoSided):
    """ASVD-III: SVD of W P γ, γ² the largest eigenvalue of X Xᵀ = P Λ Pᵀ.

    Lu et al. 2025 (NSVD, arXiv 2503.17101), Theorem 4: the loss is at most the sum of the dropped σ². P has orthonormal
    columns and γ is a number, so on a full-rank X these are the factors of `svd`; only directions in which no input
    ever pointed (eigenvalues cut as in `whiten`) are left out.
    """

    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def sides(self, w: Matrix, site: Measured) -> Sides:
        values, vectors = spectrum(required(site.moment, "moment", "asvd-iii"), "moment")
        gamma = float(values[0].sqrt()) if len(values) else 0.0
        return Sides(Whitening(vectors * gamma, vectors.T / gamma if gamma else vectors.T), None)
