"""`asvd`: SVD of the columns scaled by the size of their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edge_svd.decompose.factorization import Matrix, as_matrix
from edge_svd.decompose.metrics import Measured, scaling, weights_of
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import Whitening
from edge_svd.registry import within


@DECOMPOSITIONS.register("asvd")
@dataclass(frozen=True)
class Asvd(TwoSided):
    """ASVD: least ‖(W - BA) S‖_F, S the mean size of each input to the power `alpha` (0.5).

    Yuan et al. 2023 (arXiv 2312.05821), section 3.2: s_j = (mean_t |x_j|)^α; SVD of W diag(s), undone with 1/s. Inputs
    that are never anything but zero count a millionth of the largest.
    """

    alpha: float = 0.5
    needs: ClassVar[tuple[str, ...]] = ("magnitude",)

    def __post_init__(self) -> None:
        within(self.alpha, 0.0, 4.0, "parameter alpha of asvd")

    def sides(self, w: Matrix, site: Measured) -> Sides:
        columns = as_matrix(w, "w").shape[1]
        s = scaling(weights_of(site.magnitude, columns, "magnitude", "asvd")) ** self.alpha
        return Sides(Whitening(torch.diag(s), torch.diag(1 / s)), None)
