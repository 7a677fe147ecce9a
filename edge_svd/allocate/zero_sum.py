"""`zero-sum` (Zero-Sum SVD, arXiv 2602.02848): drop tail components whose predicted changes of the loss cancel."""

from __future__ import annotations

import heapq

import numpy as np

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field, lacking
from edge_svd.allocate.strategy import ALLOCATIONS


class ZeroSum(ByKl):
    """Drop last components, now of one sign and now of the other, so that the signed changes of the loss sum to zero.

    Δ of a component is -⟨∂L/∂W, b_r a_r⟩. At every step the last components of all matrices are candidates; taken is
    the smallest |Δ| among those of the sign that brings the running sum nearer to zero, or of all where there is none.
    Above the break-even rank a matrix saves nothing: what lies there goes with the first component below it.
    """

    needs: tuple[str, ...] = ("gradient",)
    beyond_plans = "the signed changes of single components"

    def rule(self, field: Field, budget: int) -> list[int] | None:
        if field.signed is None:
            raise lacking("zero-sum", self.beyond_plans)
        change = [field.signed(g) for g in range(len(field.full))]
        choice = [len(cost) - 1 for cost in field.cost]
        queues: tuple[list[tuple[float, int]], list[tuple[float, int]]] = ([], [])

        def offer(g: int) -> None:
            if choice[g] > 0:
                delta = float(change[g][choice[g] - 1])
                heapq.heappush(queues[delta > 0], (abs(delta), g))

        spent, total = field.spent(choice), 0.0
        for g in range(len(choice)):
            offer(g)
        while spent > budget:
            wanted, other = (queues[0], queues[1]) if total > 0 else (queues[1], queues[0])
            queue = wanted or other
            if not queue:
                return None
            _, g = heapq.heappop(queue)
            spent -= int(field.cost[g][choice[g]] - field.cost[g][choice[g] - 1])
            choice[g] -= 1
            total += float(change[g][choice[g]])
            offer(g)
        return choice


def remaining_sum(field: Field, choice: list[int]) -> float:
    """The signed change that a choice is predicted to make."""
    assert field.signed is not None
    return float(sum(np.sum(field.signed(g)[j:]) for g, j in enumerate(choice)))


ALLOCATIONS.register("zero-sum")(ZeroSum())
