"""What strategies share that price components by their predicted KL, in the order of the decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_svd.allocate.field import Field
from edge_svd.allocate.strategy import HasGradient, Scores
from edge_svd.decompose import Factorization


class ByKl:
    """Components as they come, prices in predicted KL."""

    in_kl = True
    needs: tuple[str, ...] = ()
    priced_as = "second-order"
    beyond_plans = ""
    measures = ""

    def order(self, factorization: Factorization, site: HasGradient) -> torch.Tensor:
        return torch.arange(len(factorization.energy))

    def tail(
        self, factorization: Factorization, order: torch.Tensor, truncation: torch.Tensor, site: HasGradient
    ) -> torch.Tensor:
        return truncation

    def rounding(self, error: torch.Tensor, loss: float, site: HasGradient) -> float:
        return loss

    def repriced(self, field: Field, choice: Sequence[int]) -> Scores | None:
        return None
