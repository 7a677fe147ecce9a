"""The best plan within limits on memory or time, and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_svd.errors import BudgetError
from edge_svd.planner.draft import Draft
from edge_svd.planner.knapsack.several_limits import solve_several
from edge_svd.planner.limits import FILE, FUNCTIONS_MATTER, LOADING, MEMORY, Limit, limits_of
from edge_svd.planner.merging import MERGED_GRAPH_BYTES, Problem, merged, whole
from edge_svd.planner.plan import Plan
from edge_svd.planner.refusal import out_of_reach

ROUNDS, FIRST = 8, 3
"""Corrections of the budgets; of those of the plan without fusing, which is there to give prices."""

PRICES = (1.0, 2.0)
"""Fusing is weighed at the prices of the limits without it, and at higher ones: where it pays, it pays for many."""

SCANNED = 8
"""Budgets tried above the last one where the graphs matter."""

CLOSE = 2e-4
"""A plan this close below all its targets is not worth another round."""


def within_limits(draft: Draft) -> Plan:
    """The best plan that meets all targets; BudgetError as in `make_plan`."""
    limits = limits_of(draft.targets, draft.setting, draft.names, draft.candidates, draft.file_costs)
    for limit in limits:
        _reachable(draft, limit)
    # Loading seldom takes more than a full context does, and every limit costs the solver time.
    found = _best(draft, [limit for limit in limits if limit.name != LOADING])
    if found is not None and any(limit.value(found.plan) > limit.target for limit in limits):
        found = _best(draft, limits)
    if found is None:
        raise _contradiction(draft, limits)
    return found.plan


def _reachable(draft: Draft, limit: Limit) -> None:
    """BudgetError unless some plan meets this one limit."""
    problem = whole([limit], [[0.0] * len(own) for own in limit.costs])
    problems = [problem, merged(draft, [limit], problem, [1.0])]
    choices = [made.choice(made.least(0)) for made in problems]
    least, choice = min(((draft.plan(draft.fixed(c)), c) for c in choices), key=lambda made: limit.value(made[0]))
    if limit.value(least) > limit.target:
        if limit.name == FILE:
            # The targets stand in the manifest too: name a size that succeeds when it is asked for.
            for _ in range(4):
                asked = replace(draft.targets, file_bytes=least.file_bytes)
                least = replace(draft, targets=asked).plan(draft.fixed(choice))
        raise out_of_reach(limit.name, least, draft.targets, draft.setting, False)


def _best(draft: Draft, limits: Sequence[Limit], scores: Sequence[Sequence[float]] | None = None) -> _Settled | None:
    """The plan of least total score (or of least `scores`) that meets the limits, with matrices fused where that pays;
    None if none was found."""
    wanted = [[c.score for c in found] for found in draft.candidates] if scores is None else scores
    problem = whole(limits, wanted)
    free = None if _small(limits) else _settled(draft, limits, problem, FIRST)
    free = free or _settled(draft, limits, problem)
    if free is not None:
        tried = [merged(draft, limits, problem, [scale * p for p in free.prices]) for scale in PRICES]
    else:
        # Nothing fits unless matrices are fused: all that counts is what they take.
        nothing = whole(limits, [[0.0] * len(own) for own in wanted])
        made = merged(draft, limits, nothing, [1.0 / max(limit.target, 1) for limit in limits])
        left = [tuple(own[i] for i in kept) for own, kept in zip(wanted, made.left, strict=True)]
        tried = [replace(made, scores=tuple(left))]
    different = {made.left: made for made in tried if made.left != problem.left}
    found = [(_settled(draft, limits, made), made) for made in different.values()]
    found.append((free if different or _small(limits) else _settled(draft, limits, problem), problem))
    settled = [(made, of) for made, of in found if made is not None]
    if not settled:
        return None
    if any(limit.name == MEMORY for limit in limits):
        # A width that passes between two products takes a buffer, however few matrices have it: no candidate's own
        # cost.
        plain = [(of, of.only(lambda at, i: not draft.widths(at, i))) for _, of in settled]
        found = [(_settled(draft, limits, made), made) for of, made in plain if made.left != of.left]
        settled += [(made, of) for made, of in found if made is not None]
    return min((made for made, _ in settled), key=lambda made: made.score)


def _small(limits: Sequence[Limit]) -> bool:
    """Whether the graphs are a good part of the bundle."""
    return limits[0].name == FILE and limits[0].target < FUNCTIONS_MATTER


@dataclass(frozen=True)
class _Settled:
    """A plan, what was minimised, and what a unit of every limit was worth."""

    plan: Plan
    score: float
    prices: tuple[float, ...]


def _settled(draft: Draft, limits: Sequence[Limit], problem: Problem, rounds: int = ROUNDS) -> _Settled | None:
    """The best plan of a problem; None if none was found."""
    start = problem.least(0)
    plan = draft.plan(draft.fixed(problem.choice(start)))
    begun = [sum(own[i] for own, i in zip(costs, start, strict=True)) for costs in problem.costs]
    budgets = [cost + limit.target - limit.value(plan) for cost, limit in zip(begun, limits, strict=True)]
    broken = [2**62] * len(budgets)  # the least budgets whose plans turned out not to fit
    best: _Settled | None = None

    def solved() -> tuple[list[int], list[int]] | None:
        """What a solution for these budgets costs, and what it leaves of the targets; the best one is kept."""
        nonlocal best
        solution = solve_several(problem.costs, problem.scores, budgets)
        if solution is None:
            return None
        plan = draft.plan(replace(solution, choice=problem.choice(solution.choice)))
        spare = [limit.target - limit.value(plan) for limit in limits]
        if min(spare) >= 0 and (best is None or solution.score < best.score):
            best = _Settled(plan, solution.score, solution.prices)
        return problem.spent(solution), spare

    for _ in range(rounds):
        made = solved()
        if made is None:
            break
        spent, spare = made
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
    if _small(limits) and best is not None:
        # What is fused changes the graphs by kilobytes, and so by more than one matrix.
        for _ in range(SCANNED):
            budgets = [budgets[0] + MERGED_GRAPH_BYTES // 2, *budgets[1:]]
            solved()
    return best


def _contradiction(draft: Draft, limits: Sequence[Limit]) -> BudgetError:
    """Every limit can be met alone, all together cannot: the least of one of them that the others leave."""
    for name in (MEMORY, FILE):
        limit = next((limit for limit in limits if limit.name == name), None)
        others = tuple(other for other in limits if other is not limit)
        if limit is not None and others:
            least = _best(draft, others, [[float(c) for c in own] for own in limit.costs])
            if least is not None:
                return out_of_reach(name, least.plan, draft.targets, draft.setting, True)
    return BudgetError(
        f"No plan has {draft.targets.words()} at once, though each can be reached alone; loosen one of them.",
        smallest=0,
        dominant="the targets together",
    )
