"""The best plan within limits on memory or time, and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from edge_svd.errors import BudgetError
from edge_svd.formats import NARROW_BLOCK, WIDE_BLOCK
from edge_svd.planner.draft import Draft, price
from edge_svd.planner.limits import FILE, MEMORY, Limit, limits_of
from edge_svd.planner.plan import Plan
from edge_svd.planner.refusal import out_of_reach
from edge_svd.planner.several import solve_several

ROUNDS = 8
CLOSE = 2e-4
"""A plan this close below all its targets is not worth another round."""


@dataclass(frozen=True)
class _Field:
    """Candidates that may stand side by side in one graph, as indices into the survey's, and what they cost there.

    Graphs of dense matrices alone have wide blocks, which hold less and run faster; one factored matrix makes all
    blocks narrow.
    """

    own: tuple[tuple[int, ...], ...]
    scores: tuple[tuple[float, ...], ...]
    limits: tuple[Limit, ...]

    def whole(self, choice: Sequence[int]) -> list[int]:
        """The same choice as indices into the survey's candidates."""
        return [indices[i] for indices, i in zip(self.own, choice, strict=True)]


def within_limits(draft: Draft) -> Plan:
    """The best plan that meets all targets; BudgetError as in `make_plan`."""
    fields = _fields(draft)
    for index in range(len(fields[0].limits)):
        _reachable(draft, fields, index)
    plans = [plan for field in fields if (plan := _best(draft, field)) is not None]
    if not plans:
        raise _contradiction(draft, fields)
    return min(plans, key=lambda plan: price(plan, draft.survey))


def _fields(draft: Draft) -> list[_Field]:
    file_costs = cache(draft.file_costs)
    found = []
    for block in (NARROW_BLOCK, WIDE_BLOCK):
        own = tuple(
            tuple(i for i, c in enumerate(table) if block == NARROW_BLOCK or not c.format.factored)
            for table in draft.candidates
        )
        if not all(own):
            continue
        table = [[cs[i] for i in indices] for cs, indices in zip(draft.candidates, own, strict=True)]
        limits = limits_of(
            draft.targets,
            draft.setting,
            draft.names,
            table,
            lambda own=own: [[cs[i] for i in indices] for cs, indices in zip(file_costs(), own, strict=True)],  # type: ignore[misc]
            block,
        )
        found.append(_Field(own, tuple(tuple(c.score for c in cs) for cs in table), limits))
    return found


def _reachable(draft: Draft, fields: list[_Field], index: int) -> None:
    """BudgetError unless some plan meets this one limit."""
    limit = fields[0].limits[index]
    plans = [draft.plan(draft.fixed(field.whole(field.limits[index].least()))) for field in fields]
    least = min(plans, key=limit.value)
    if limit.value(least) > limit.target:
        if limit.name == FILE:
            # The targets stand in the manifest too: name a size that succeeds when it is asked for.
            for _ in range(4):
                asked = replace(draft.targets, file_bytes=least.file_bytes)
                least = replace(draft, targets=asked).plan(draft.fixed(_choice(draft, least)))
        raise out_of_reach(limit.name, least, draft.targets, draft.setting, False)


def _best(draft: Draft, field: _Field, scores: Sequence[Sequence[float]] | None = None) -> Plan | None:
    """The plan of least total score (or of least `scores`) that meets the field's limits; None if none was found."""
    wanted = field.scores if scores is None else scores
    start = field.limits[0].least()
    plan = draft.plan(draft.fixed(field.whole(start)))
    budgets = [limit.of(start) + limit.target - limit.value(plan) for limit in field.limits]
    broken = [2**62] * len(budgets)  # the least budgets whose plans turned out not to fit
    best: tuple[float, Plan] | None = None
    for _ in range(ROUNDS):
        solution = solve_several([limit.costs for limit in field.limits], wanted, budgets)
        if solution is None:
            break
        plan = draft.plan(replace(solution, choice=tuple(field.whole(solution.choice))))
        spent = [limit.of(solution.choice) for limit in field.limits]
        spare = [limit.target - limit.value(plan) for limit in field.limits]
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
        if all(0 <= left <= CLOSE * limit.target for left, limit in zip(spare, field.limits, strict=True)):
            break
        if changed == budgets:
            break
        budgets = changed
    return best[1] if best is not None else None


def _contradiction(draft: Draft, fields: list[_Field]) -> BudgetError:
    """Every limit can be met alone, all together cannot: the least of one of them that the others leave."""
    for name in (MEMORY, FILE):
        plans = []
        for field in fields:
            limit = next((limit for limit in field.limits if limit.name == name), None)
            others = tuple(other for other in field.limits if other is not limit)
            if limit is not None and others:
                plan = _best(draft, replace(field, limits=others), [[float(c) for c in own] for own in limit.costs])
                if plan is not None:
                    plans.append((limit.value(plan), plan))
        if plans:
            least = min(plans, key=lambda found: found[0])[1]
            return out_of_reach(name, least, draft.targets, draft.setting, True)
    return BudgetError(
        f"No plan has {draft.targets.words()} at once, though each can be reached alone; loosen one of them.",
        smallest=0,
        dominant="the targets together",
    )


def _choice(draft: Draft, plan: Plan) -> list[int]:
    """Where a plan's formats stand among the survey's candidates."""
    return [
        next(i for i, c in enumerate(found) if c.format == plan.sites[name].format)
        for name, found in zip(draft.names, draft.candidates, strict=True)
    ]
