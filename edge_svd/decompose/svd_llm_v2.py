"""`svd-llm-v2`: activation-aware SVD through the eigenvectors of the input's second moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured, required
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import whiten


@DECOMPOSITIONS.register("svd-llm-v2")
@dataclass(frozen=True)
class SvdLlmV2(TwoSided):
    """SVD-LLM V2: least ‖(W - BA) X‖_F at every rank, also where X Xᵀ is singular.

    Wang et al. 2025 (SVD-LLM V2), section 3.2, Theorem 3.1: X Xᵀ = U S Uᵀ, the SVD of W U S^½, undone with S^-½ Uᵀ.
    The theorem, not Algorithm 2, which leaves out the square root and Vᵀ. `damping` (none, as published: the cut of
    eigenvalues handles a singular second moment) is a share of the mean diagonal.
    """

    damping: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def sides(self, w: Matrix, site: Measured) -> Sides:
        return Sides(whiten(required(site.moment, "moment", "svd-llm-v2"), self.damping, "moment"), None)
