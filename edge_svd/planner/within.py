"""The best plan within limits on memory or time, and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge_svd.errors import BudgetError
from edge_svd.planner.draft import Draft
from edge_svd.planner.limits import FILE, LOADING, MEMORY, Limit, limits_of
from edge_svd.planner.plan import Plan
from edge_svd.planner.refusal import out_of_reach
from edge_svd.planner.several import solve_several

ROUNDS = 8
CLOSE = 2e-4
"""A plan this close below all its targets is not worth another round."""


def within_limits(draft: Draft) -> Plan:
    """The best plan that meets all targets; BudgetError as in `make_plan`."""
    limits = limits_of(draft.targets, draft.setting, draft.names, draft.candidates, draft.file_costs)
    for limit in limits:
        _reachable(draft, limit)
    # Loading seldom takes more than a full context does, and every limit costs the solver time.
    plan = _best(draft, [limit for limit in limits if limit.name != LOADING])
    if plan is not None and any(limit.value(plan) > limit.target for limit in limits):
        plan = _best(draft, limits)
    if plan is None:
        raise _contradiction(draft, limits)
    return plan


def _reachable(draft: Draft, limit: Limit) -> None:
    """BudgetError unless some plan meets this one limit."""
    choice = limit.least()
    least = draft.plan(draft.fixed(choice))
    if limit.value(least) > limit.target:
        if limit.name == FILE:
            # The targets stand in the manifest too: name a size that succeeds when it is asked for.
            for _ in range(4):
                asked = replace(draft.targets, file_bytes=least.file_bytes)
                least = replace(draft, targets=asked).plan(draft.fixed(choice))
        raise out_of_reach(limit.name, least, draft.targets, draft.setting, False)


def _best(draft: Draft, limits: Sequence[Limit], scores: Sequence[Sequence[float]] | None = None) -> Plan | None:
    """The plan of least total score (or of least `scores`) that meets the limits; None if none was found."""
    wanted = [[c.score for c in found] for found in draft.candidates] if scores is None else scores
    start = limits[0].least()
    plan = draft.plan(draft.fixed(start))
    budgets = [limit.of(start) + limit.target - limit.value(plan) for limit in limits]
    broken = [2**62] * len(budgets)  # the least budgets whose plans turned out not to fit
    best: tuple[float, Plan] | None = None
    for _ in range(ROUNDS):
        solution = solve_several([limit.costs for limit in limits], wanted, budgets)
        if solution is None:
            break
        plan = draft.plan(solution)
        spent = [limit.of(solution.choice) for limit in limits]
        spare = [limit.target - limit.value(plan) for limit in limits]
        if min(spare) >= 0 and (best is None or solution.score < best[0]):
            best = solution.score, plan
        for index, left in enumerate(spare):
            if left < 0:
                broken[index] = min(broken[index], budgets[index])
        changed = [
            guess if guess < bad else (max(budget, used) + bad) // 2
            for guess, bad, budget, used in zip(
                (used + left for used, left in zip(spent, spare, strict=True)), broken, budgets, spent, strict=True
            )
        ]
        if all(0 <= left <= CLOSE * limit.target for left, limit in zip(spare, limits, strict=True)):
            break
        if changed == budgets:
            break
        budgets = changed
    return best[1] if best is not None else None


def _contradiction(draft: Draft, limits: Sequence[Limit]) -> BudgetError:
    """Every limit can be met alone, all together cannot: the least of one of them that the others leave."""
    for name in (MEMORY, FILE):
        limit = next((limit for limit in limits if limit.name == name), None)
        others = tuple(other for other in limits if other is not limit)
        if limit is not None and others:
            least = _best(draft, others, [[float(c) for c in own] for own in limit.costs])
            if least is not None:
                return out_of_reach(name, least, draft.targets, draft.setting, True)
    return BudgetError(
        f"No plan has {draft.targets.words()} at once, though each can be reached alone; loosen one of them.",
        smallest=0,
        dominant="the targets together",
    )
