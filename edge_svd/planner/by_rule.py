"""Plans by strategies that do not trade between matrices, but have a rule for what every matrix keeps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_svd.allocate import Field, allocation
from edge_svd.architectures import Site
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.knapsack.one_limit import Solution, solve


def solve_by_rule(
    sites: Sequence[Site], candidates: Sequence[Sequence[Candidate]], name: str, budget: int
) -> Solution | None:
    """The allocation's own choice within the budget, None where nothing fits; ratios are shares of the bytes of a dense
    int8 matrix. InputError where it needs what a plan does not know."""
    field = Field(
        types=[site.type for site in sites],
        full=[
            max((c.bytes for c in found if c.format.kind != "int16"), default=found[0].bytes) for found in candidates
        ],
        cost=[np.array([c.bytes for c in found], np.int64) for found in candidates],
        loss=[np.array([c.loss for c in found]) for found in candidates],
        score=[np.array([c.score for c in found]) for found in candidates],
    )
    choice = chosen(field, name, budget)
    if choice is None:
        return None
    score = sum(found[i].score for found, i in zip(candidates, choice, strict=True))
    return Solution(tuple(choice), field.spent(choice), score, score)


def chosen(field: Field, name: str, budget: int) -> list[int] | None:
    """An option for every matrix, by the allocation's rule or for the least total price; None where nothing fits."""
    strategy = allocation(name)
    if strategy.rule is not None:
        return strategy.rule(field, budget)
    costs = [cost.tolist() for cost in field.cost]
    solution = solve(costs, [score.tolist() for score in field.score], budget)
    scores = None if solution is None else strategy.repriced(field, solution.choice)
    if scores is not None:
        solution = solve(costs, [score.tolist() for score in scores], budget)
    return None if solution is None else list(solution.choice)
