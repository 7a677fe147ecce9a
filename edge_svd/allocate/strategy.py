"""What an allocation strategy decides, and the registry of strategies."""

from __future__ import annotations

from typing import Protocol

import torch

from edge_svd.decompose import Factorization
from edge_svd.registry import Registry


class HasGradient(Protocol):
    """Where a strategy finds the loss gradient of the matrix at hand."""

    @property
    def gradient(self) -> torch.Tensor: ...


class Strategy(Protocol):
    """Orders the components of a matrix and prices its candidates; the planner then minimises the total price.

    `same_ratio` strategies do not trade between matrices: every matrix keeps the same share of its parameters.
    `in_kl`: the price is the predicted KL itself, so corrections of predictions apply to it.
    `needs_gradient`: it looks at ∂L/∂W, which calibration collects in a pass of its own.
    """

    same_ratio: bool
    in_kl: bool
    needs_gradient: bool

    def order(self, factorization: Factorization, site: HasGradient) -> torch.Tensor:
        """Component numbers [r], most valuable first; a rank k keeps the first k."""
        ...

    def tail(
        self, factorization: Factorization, order: torch.Tensor, truncation: torch.Tensor, site: HasGradient
    ) -> torch.Tensor:
        """Price [r + 1] of keeping the first k components; `truncation` is the same in predicted KL."""
        ...

    def rounding(self, error: torch.Tensor, loss: float, site: HasGradient) -> float:
        """Price of a rounding error E [m, n] whose predicted KL is `loss`."""
        ...


ALLOCATIONS: Registry[Strategy] = Registry("allocation")


def allocation(name: str) -> Strategy:
    """The strategy of that name; InputError listing the known ones otherwise."""
    return ALLOCATIONS[name]
