"""`first-order` (IO-SVD, arXiv 2605.15626; Zero-Sum SVD, arXiv 2602.02848): prune the least sensitive components.

A component's score is the first-order change of the calibration loss when it is removed, the mean over windows of
|⟨∂L_w/∂W, b_r a_r⟩|, on windows that did not make the metric. The mean gradient of a trained model is little but noise;
where the windows' own are not at hand, as in a plan of bytes, its |⟨∂L/∂W, b_r a_r⟩| has to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_svd.allocate.field import Field
from edge_svd.allocate.strategy import ALLOCATIONS, HasGradient, Scores
from edge_svd.decompose import Factorization


def changes_of(factorization: Factorization, gradient: torch.Tensor) -> torch.Tensor:
    """⟨G, b_r a_r⟩ = b_rᵀ G a_r for every component [r]; G [m, n]."""
    return ((gradient.T @ factorization.b) * factorization.a.T).sum(0)


def sensitivity(factorization: Factorization, site: HasGradient) -> torch.Tensor:
    """How much the loss changes to first order without a component [r], nats per token."""
    if site.changes is not None:
        return site.changes.double().abs().mean(0)
    return changes_of(factorization, site.gradient).abs()


class FirstOrder:
    """Prune by the first-order change of the calibration loss per byte."""

    rule = None
    in_kl = False
    needs: tuple[str, ...] = ("gradient",)
    priced_as = "first-order"
    beyond_plans = ""
    measures = "changes"

    def order(self, factorization: Factorization, site: HasGradient) -> torch.Tensor:
        return torch.argsort(sensitivity(factorization, site), descending=True, stable=True)

    def tail(
        self, factorization: Factorization, order: torch.Tensor, truncation: torch.Tensor, site: HasGradient
    ) -> torch.Tensor:
        scores = sensitivity(factorization, site)[order]
        return torch.cat([scores.flip(0).cumsum(0).flip(0), scores.new_zeros(1)])

    def rounding(self, error: torch.Tensor, loss: float, site: HasGradient) -> float:
        return abs(float((error.to(site.gradient.device).double() * site.gradient).sum()))

    def repriced(self, field: Field, choice: Sequence[int]) -> Scores | None:
        return None


ALLOCATIONS.register("first-order")(FirstOrder())
