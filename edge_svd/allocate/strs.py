"""`strs` (ASVD, section 3.4): sensitivity-based truncation rank searching."""

from __future__ import annotations

from edge_svd.allocate.by_kl import ByKl
from edge_svd.allocate.field import Field, lacking
from edge_svd.allocate.strategy import ALLOCATIONS

RATIOS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


class Strs(ByKl):
    """Measure perplexity with one matrix truncated at a time; every matrix keeps what stays below a common threshold.

    Yuan et al. 2023 (arXiv 2312.05821), section 3.4: every matrix at every kept ratio of 0.4, 0.5 … 0.9, all others
    whole; the threshold is the lowest, found by bisection, whose choice meets the budget, and what the budget has left
    after it goes to single steps up in forward order.
    """

    beyond_plans = "perplexities measured with single matrices truncated"
    measures = "single"

    def rule(self, field: Field, budget: int) -> list[int] | None:
        if field.measured is None:
            raise lacking("strs", self.beyond_plans)
        table = [[field.measured(g, ratio) for ratio in RATIOS] for g in range(len(field.full))]

        def at(threshold: float) -> list[int]:
            kept = [
                next((r for r, perplexity in zip(RATIOS, row, strict=True) if perplexity <= threshold), 1.0)
                for row in table
            ]
            return [field.within(g, share * field.full[g]) for g, share in enumerate(kept)]

        thresholds = sorted({perplexity for row in table for perplexity in row})
        if field.spent(at(thresholds[-1])) > budget:
            return None
        low, high = -1, len(thresholds) - 1  # `high` meets the budget and `low` does not, where there is one
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if field.spent(at(thresholds[middle])) <= budget else (middle, high)
        larger = at(thresholds[low]) if low >= 0 else [len(cost) - 1 for cost in field.cost]
        return field.filled(at(thresholds[high]), budget, larger)


ALLOCATIONS.register("strs")(Strs())
