"""`first-order` (IO-SVD, arXiv 2605.15626; Zero-Sum SVD, arXiv 2602.02848): prune the least sensitive components.

A component's score is the first-order change of the calibration loss when it is removed, |⟨∂L/∂W, b_r a_r⟩|, on windows
that did not make the metric.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_svd.allocate.field import Field
from edge_svd.allocate.strategy import ALLOCATIONS, HasGradient, Scores
from edge_svd.decompose import Factorization


def sensitivity(factorization: Factorization, gradient: torch.Tensor) -> torch.Tensor:
    """|b_rᵀ G a_r| for every component [r], nats per token."""
    return ((gradient.T @ factorization.b) * factorization.a.T).sum(0).abs()


class FirstOrder:
    """Prune by the first-order change of the calibration loss per byte."""

    rule = None
    in_kl = False
    needs: tuple[str, ...] = ("gradient",)
    priced_as = "first-order"
    beyond_plans = ""

    def order(self, factorization: Factorization, site: HasGradient) -> torch.Tensor:
        return torch.argsort(sensitivity(factorization, site.gradient), descending=True, stable=True)

    def tail(
        self, factorization: Factorization, order: torch.Tensor, truncation: torch.Tensor, site: HasGradient
    ) -> torch.Tensor:
        scores = sensitivity(factorization, site.gradient)[order]
        return torch.cat([scores.flip(0).cumsum(0).flip(0), scores.new_zeros(1)])

    def rounding(self, error: torch.Tensor, loss: float, site: HasGradient) -> float:
        return abs(float((error.double() * site.gradient).sum()))

    def repriced(self, field: Field, choice: Sequence[int]) -> Scores | None:
        return None


ALLOCATIONS.register("first-order")(FirstOrder())
