"""`strs` (ASVD, section 3.4): sensitivity-based truncation rank searching."""

from __future__ import annotations

import math

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field, lacking
from edge_svd.allocate.strategy import ALLOCATIONS

RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Strs(ByKl):
    """Measure perplexity with one matrix truncated at a time; every matrix keeps what stays below a common threshold.

    Yuan et al. 2023 (arXiv 2312.05821), section 3.4: every matrix at a kept ratio of 0.4, 0.5 … 0.9, all others whole;
    the threshold is the lowest whose choice meets the budget, and what the budget has left after it goes to single
    steps up in forward order. The paper bisects for it over a whole table; lowering it from above until the budget
    would be broken finds the same one, and ratios above those that the choice passes through are never measured.
    """

    beyond_plans = "perplexities measured with single matrices truncated"
    measures = "single"

    def rule(self, field: Field, budget: int) -> list[int] | None:
        if field.measured is None:
            raise lacking("strs", self.beyond_plans)
        measured = field.measured
        at = [0] * len(field.full)  # of every matrix, where in RATIOS it stands; at its end it is whole
        reached = [measured(g, RATIOS[0]) for g in range(len(at))]

        def options() -> list[int]:
            shares = [RATIOS[i] if i < len(RATIOS) else 1.0 for i in at]
            return [field.within(g, share * field.full[g]) for g, share in enumerate(shares)]

        choice = options()
        if field.spent(choice) > budget:
            return None
        while max(reached) > -math.inf:
            threshold = max(reached)
            for g in range(len(at)):
                while reached[g] >= threshold:
                    at[g] += 1
                    reached[g] = measured(g, RATIOS[at[g]]) if at[g] < len(RATIOS) else -math.inf
            larger = options()
            if field.spent(larger) > budget:
                return field.filled(choice, budget, larger)
            choice = larger
        return choice


ALLOCATIONS.register("strs")(Strs())
