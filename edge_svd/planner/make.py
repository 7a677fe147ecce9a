"""A plan for its targets: solve, count what would really follow, correct the budgets, solve again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from edge_svd.allocate import allocation
from edge_svd.errors import BudgetError, InputError
from edge_svd.formats import WHOLE_PASS, SiteFormat
from edge_svd.planner.by_rule import solve_by_rule
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.draft import Draft, SizeOf, price
from edge_svd.planner.knapsack.one_limit import Solution, solve
from edge_svd.planner.limits import FILE, FUNCTIONS_MATTER
from edge_svd.planner.plan import Plan
from edge_svd.planner.refusal import out_of_reach
from edge_svd.planner.survey import Survey
from edge_svd.planner.targets import Setting, Targets
from edge_svd.planner.within import within_limits
from edge_svd.runtime.kernel_support import whole_pass_works

ROUNDS = 6
FILLED = 2e-3
"""Share of a target that may stay unused without a second look."""

CLOSE = 2e-5
"""A plan this close below the target is not worth another round."""


def make_plan(
    survey: Survey,
    source: Mapping[str, str],
    *,
    targets: Targets,
    setting: Setting,
    seed: int,
    size_of: SizeOf,
    tune_steps: int = 0,
) -> Plan:
    """The best plan that meets every target.

    Raises:
        BudgetError: there is none; names the smallest reachable value, what dominates it and what would help.
        InputError: an allocation that knows sizes alone is asked for another target.
    """
    # Where the device computes them wrongly, or where this machine does and could prove no bundle that has them.
    if not (setting.profile.device.exact_int8 and whole_pass_works()):
        survey = _in_blocks(survey)
    draft = Draft(survey, source, targets, setting, seed, size_of, tune_steps)
    if not targets.resident:
        return _smallest_graph(draft) if (targets.file_bytes or 0) < FUNCTIONS_MATTER else _within_size(draft)
    if allocation(survey.allocation).rule is not None:
        raise InputError(
            f"The allocation {survey.allocation} has its own rule for every matrix and can aim at a --size alone; "
            "choose another for --ram and --min-decode-tps."
        )
    return within_limits(draft)


def _in_blocks(survey: Survey) -> Survey:
    """The price list without products whose inputs share one scale a pass."""
    kept = {name: tuple(c for c in found if c.format.block != WHOLE_PASS) for name, found in survey.candidates.items()}
    return replace(survey, candidates=kept)


def _smallest_graph(draft: Draft) -> Plan:
    """The best of plans from all formats, from those that call no functions of the graph, and from blocks alone, with
    and without a look at what fusing saves of the graph.

    The solver takes what a kind of format adds to the graph for the same everywhere, and functions for free.
    """
    kept: tuple[Callable[[SiteFormat], bool], ...] = (
        lambda fmt: True,
        lambda fmt: _function(fmt) is None,
        lambda fmt: fmt.kind == "blocks",
    )
    plans, refused = [], None
    seen: list[Mapping[str, tuple[Candidate, ...]]] = []
    for keep in kept:
        candidates = {
            name: tuple(c for c in found if keep(c.format)) for name, found in draft.survey.candidates.items()
        }
        if all(candidates.values()) and candidates not in seen:
            seen.append(candidates)
            own = replace(draft, survey=replace(draft.survey, candidates=candidates))
            for make in (_within_size, within_limits):
                try:
                    plans.append(make(own))
                except BudgetError as error:
                    refused = refused if refused and refused.smallest <= error.smallest else error
    if not plans:
        assert refused is not None
        raise refused
    return min(plans, key=lambda plan: price(plan, draft.survey))


def _within_size(draft: Draft) -> Plan:
    """The best plan whose bundle is at most the target.

    What the weights may take is the target less everything else in the folder (graphs, tokenizer, manifest), which
    depends a little on the plan itself; a few rounds settle it.
    """
    candidates, survey = draft.candidates, draft.survey
    target_bytes = draft.targets.file_bytes or 0
    costs = draft.file_costs()
    # Little matrices may be smaller in weights and larger in graph: what counts is the folder.
    leasts = [
        [min(range(len(c)), key=lambda i: (c[i], i)) for c in table]
        for table in (costs, [[c.bytes for c in found] for found in candidates])
    ]
    smallest, least = min(
        ((draft.plan(draft.fixed(choice)), choice) for choice in leasts), key=lambda made: made[0].file_bytes
    )
    if smallest.file_bytes > target_bytes:
        # The target stands in the manifest too: name a size that succeeds when it is asked for.
        for _ in range(4):
            asked = replace(draft.targets, file_bytes=smallest.file_bytes)
            smallest = replace(draft, targets=asked).plan(draft.fixed(least))
        raise out_of_reach(FILE, smallest, draft.targets, draft.setting, False)
    best = smallest
    low, high = 0, 2 * target_bytes  # budgets whose plans turned out to fit, and not to fit
    budget = sum(c[i] for c, i in zip(costs, least, strict=True)) + target_bytes - smallest.file_bytes
    for _ in range(ROUNDS):
        solution = _solve(survey, candidates, costs, budget)
        plan = smallest if solution is None else draft.plan(draft.quick(solution))
        spare = target_bytes - plan.file_bytes
        if spare >= 0 and price(plan, survey) < price(best, survey):
            best = plan
        low, high = (budget, high) if spare >= 0 else (low, budget)
        spent = budget if solution is None else solution.cost
        guess = spent + spare
        if high - low <= 1 or guess == budget or 0 <= spare <= CLOSE * target_bytes:
            break
        budget = guess if low < guess < high else (low + high) // 2
    return _filled(draft, costs, best)


def _filled(draft: Draft, costs: Sequence[Sequence[int]], best: Plan) -> Plan:
    """A better plan that calls no other functions of the graph, where the best one leaves much of a target unused.

    Every function is a few kilobytes once, whichever matrices call it. The solver counts bytes a matrix, so among plans
    with different functions it can miss the target by those; among plans with the same ones it cannot.
    """
    target, survey = draft.targets.file_bytes or 0, draft.survey
    if allocation(survey.allocation).rule is not None:
        return best
    for _ in range(ROUNDS):
        spare = target - best.file_bytes
        if spare <= FILLED * target:
            break
        formats = [choice.format for choice in best.sites.values()]
        known = {_function(fmt) for fmt in formats} | {None}
        allowed = [[i for i, c in enumerate(found) if _function(c.format) in known] for found in draft.candidates]
        now = sum(
            row[next(i for i, c in enumerate(found) if c.format == fmt)]
            for row, found, fmt in zip(costs, draft.candidates, formats, strict=True)
        )
        better = None
        own = [[row[i] for i in kept] for row, kept in zip(costs, allowed, strict=True)]
        scores = [[found[i].score for i in kept] for found, kept in zip(draft.candidates, allowed, strict=True)]
        for share in (1.0, 0.9, 0.7, 0.4):
            solution = solve(own, scores, now + int(share * spare))
            if solution is None:
                break
            chosen = tuple(kept[i] for kept, i in zip(allowed, solution.choice, strict=True))
            plan = draft.plan(draft.quick(replace(solution, choice=chosen)))
            if plan.file_bytes <= target:
                better = plan
                break
        if better is None or price(better, survey) >= price(best, survey):
            break
        best = better
    return best


def _function(fmt: SiteFormat) -> tuple[int, ...] | None:
    """Which function of the graph a format calls, None if none."""
    if fmt.kind == "trellis":
        return (fmt.bits,)
    return tuple(bits for bits, _ in fmt.rows) + (0,) if fmt.rows else None


def _solve(
    survey: Survey, candidates: list[tuple[Candidate, ...]], costs: Sequence[Sequence[int]], budget: int
) -> Solution | None:
    if allocation(survey.allocation).rule is not None:
        return solve_by_rule(survey.sites, candidates, survey.allocation, budget)
    return solve(costs, [[c.score for c in found] for found in candidates], budget)
