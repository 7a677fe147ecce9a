"""`fwsvd`: SVD with rows weighted by their Fisher information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edge_svd.decompose.factorization import Matrix, as_matrix
from edge_svd.decompose.metrics import Measured, scaling, weights_of
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import Whitening


@DECOMPOSITIONS.register("fwsvd")
@dataclass(frozen=True)
class Fwsvd(TwoSided):
    """FWSVD: least ‖D (W - BA)‖_F, D² the Fisher information of each row.

    Hsu et al. 2022 (arXiv 2207.00112), eq. 6: SVD of D W, undone with D⁻¹; D² are the row sums of E[(∂L/∂W)²]. Rows of
    no information, which the paper does not speak of, count a millionth of the largest D.
    """

    needs: ClassVar[tuple[str, ...]] = ("fisher",)

    def sides(self, w: Matrix, site: Measured) -> Sides:
        rows = as_matrix(w, "w").shape[0]
        d = scaling(weights_of(site.fisher, rows, "fisher", "fwsvd").sqrt())
        return Sides(None, Whitening(torch.diag(d), torch.diag(1 / d)))
