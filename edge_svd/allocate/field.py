"""All matrices of a model with what they may become, as an allocation under one budget sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_svd.errors import InputError


@dataclass(frozen=True)
class Field:
    """Matrix g has options j that cost cost[g][j] (parameters or bytes) and lose loss[g][j] (predicted KL, nats per
    token); score[g][j] is what the strategy at hand prices them at.

    full: cost of every matrix as it is. types: of every matrix, as "q" or "down". signed: where option j keeps j
    components and the last one all of them, what every step down from an option changes the loss by to first order,
    [options - 1]. measured: perplexity on calibration text with matrix g alone at a kept ratio. truncated: measured KL
    with all matrices of one type at their options of a choice and the others whole. None where not known.
    """

    types: Sequence[str]
    full: Sequence[int]
    cost: Sequence[NDArray[np.int64]]
    loss: Sequence[NDArray[np.float64]]
    score: Sequence[NDArray[np.float64]]
    signed: Callable[[int], NDArray[np.float64]] | None = None
    measured: Callable[[int, float], float] | None = None
    truncated: Callable[[Sequence[int], str], float] | None = None

    def spent(self, choice: Sequence[int]) -> int:
        """What a choice costs."""
        return int(sum(int(cost[j]) for cost, j in zip(self.cost, choice, strict=True)))

    def within(self, g: int, limit: float) -> int:
        """The least loss that matrix g can have at this cost; its cheapest option where none is so cheap."""
        cost, loss = self.cost[g], self.score[g]
        fitting = np.flatnonzero(cost <= limit)
        if not len(fitting):
            return int(np.argmin(cost))
        return int(fitting[np.lexsort((cost[fitting], loss[fitting]))[0]])

    def filled(self, choice: Sequence[int], budget: int, larger: Sequence[int]) -> list[int]:
        """The choice with matrices, in forward order, moved towards `larger` as long as the budget has room."""
        found, left = list(choice), budget - self.spent(choice)
        for g, upper in enumerate(larger):
            cost, score, here = self.cost[g], self.score[g], found[g]
            most = min(int(cost[upper]), int(cost[here]) + left)
            better = np.flatnonzero((cost > cost[here]) & (cost <= most) & (score < score[here]))
            if len(better):
                found[g] = int(better[np.argmin(score[better])])
                left -= int(cost[found[g]] - cost[here])
        return found


Shares = Callable[[float], Sequence[float]]
"""The kept ratio of every matrix where all of them together keep one."""


def by_shares(field: Field, shares: Shares, budget: int) -> list[int] | None:
    """The largest common ratio whose shares fit the budget, then single steps up in forward order for what is left of
    it; None where nothing fits."""

    def at(ratio: float) -> list[int]:
        return [field.within(g, share * field.full[g]) for g, share in enumerate(shares(ratio))]

    low, high = 0.0, 2.5
    if field.spent(at(low)) > budget:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if field.spent(at(middle)) <= budget else (low, middle)
    return field.filled(at(low), budget, at(high))


def lacking(name: str, what: str) -> InputError:
    """For a strategy that needs what the field does not know."""
    return InputError(f"The allocation {name} needs {what}, which plans of bytes do not have; compare it by ratio.")
