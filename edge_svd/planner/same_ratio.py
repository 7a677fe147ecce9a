"""Plans that keep the same share of parameters in every matrix, for strategies that do not trade between matrices."""

from __future__ import annotations

from collections.abc import Sequence

from edge_svd.architectures import Site
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.knapsack.one_limit import Solution


def solve_same_ratio(sites: Sequence[Site], candidates: Sequence[Sequence[Candidate]], budget: int) -> Solution | None:
    """The largest common ratio that fits; then single steps up, in forward order, for what is left of the budget.

    A matrix at ratio ρ takes the most accurate of its candidates with at most ρ · (bytes of its dense int8 form).
    """
    byte_counts = [[c.bytes for c in found] for found in candidates]
    reference = [
        max((c.bytes for c in found if c.format.kind != "int16"), default=max(b))
        for found, b in zip(candidates, byte_counts, strict=True)
    ]

    def at(ratio: float) -> list[int]:
        picked = []
        for found, sizes, full in zip(candidates, byte_counts, reference, strict=True):
            fitting = [i for i, size in enumerate(sizes) if size <= ratio * full]
            least = min(range(len(sizes)), key=lambda i: sizes[i])
            picked.append(min(fitting, key=lambda i: (found[i].score, sizes[i])) if fitting else least)
        return picked

    def cost(choice: Sequence[int]) -> int:
        return sum(sizes[i] for sizes, i in zip(byte_counts, choice, strict=True))

    low, high = 0.0, 2.5
    if cost(at(low)) > budget:
        return None
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(at(middle)) <= budget else (low, middle)
    choice = at(low)
    left = budget - cost(choice)
    for g, upper in enumerate(at(high)):
        extra = byte_counts[g][upper] - byte_counts[g][choice[g]]
        if 0 < extra <= left:
            choice[g] = upper
            left -= extra
    score = sum(found[i].score for found, i in zip(candidates, choice, strict=True))
    return Solution(tuple(choice), cost(choice), score, score)
