"""`second-order`: prune by predicted KL per byte, a price that is comparable across matrices."""

from __future__ import annotations

import torch

from edge_svd.allocate.strategy import ALLOCATIONS, HasGradient
from edge_svd.decompose import Factorization


class SecondOrder:
    """Prune by predicted KL per byte (half a squared singular value of the two-sided metric)."""

    same_ratio = False
    in_kl = True
    needs_gradient = False

    def order(self, factorization: Factorization, site: HasGradient) -> torch.Tensor:
        return torch.arange(len(factorization.energy))

    def tail(
        self, factorization: Factorization, order: torch.Tensor, truncation: torch.Tensor, site: HasGradient
    ) -> torch.Tensor:
        return truncation

    def rounding(self, error: torch.Tensor, loss: float, site: HasGradient) -> float:
        return loss


ALLOCATIONS.register("second-order")(SecondOrder())
