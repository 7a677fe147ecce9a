"""What an allocation strategy decides, and the registry of strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from edge_svd.allocate.field import Field
from edge_svd.decompose import Factorization
from edge_svd.registry import Registry

Rule: TypeAlias = Callable[[Field, int], list[int] | None]
Scores: TypeAlias = list[NDArray[np.float64]]


class HasGradient(Protocol):
    """Where a strategy finds the loss gradient of the matrix at hand, and of every window ⟨∂L_w/∂W, b_r a_r⟩, nats per
    token [windows, r], where that was measured."""

    @property
    def gradient(self) -> torch.Tensor: ...

    @property
    def changes(self) -> torch.Tensor | None: ...


class Strategy(Protocol):
    """Orders the components of a matrix and prices its options; then options are chosen for all matrices at once.

    `rule`: picks an option for every matrix, together within a budget, or says None where nothing fits. Strategies
    without one take the least total price, which the planner's solver finds. `in_kl`: the price is the predicted KL
    itself, so corrections of predictions apply to it. `needs`: the statistics that it looks at beyond the metrics
    (`decompose.Measured`). `priced_as`: the strategy that stands for all with the same order and the same prices.
    `beyond_plans`: what it needs that a plan of bytes does not have, "" where a plan has everything. `measures`: what a
    comparison measures for it: "changes" by component (`HasGradient`), "single" matrices truncated (`Field.measured`),
    all of a "type" (`Field.truncated`), or "".
    """

    in_kl: bool
    needs: tuple[str, ...]
    priced_as: str
    beyond_plans: str
    measures: str

    @property
    def rule(self) -> Rule | None: ...

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

    def repriced(self, field: Field, choice: Sequence[int]) -> Scores | None:
        """Prices of all options as measurements around a choice correct them, to choose by once more; None where the
        choice stands."""
        ...


ALLOCATIONS: Registry[Strategy] = Registry("allocation")


def allocation(name: str) -> Strategy:
    """The strategy of that name; InputError listing the known ones otherwise."""
    return ALLOCATIONS[name]
