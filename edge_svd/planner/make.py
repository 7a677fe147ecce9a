"""A plan for its targets: solve, count what would really follow, correct the budgets, solve again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edge_svd.allocate import allocation
from edge_svd.errors import InputError
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.draft import Draft, SizeOf, price
from edge_svd.planner.limits import FILE
from edge_svd.planner.plan import Plan
from edge_svd.planner.refusal import out_of_reach
from edge_svd.planner.same_ratio import solve_same_ratio
from edge_svd.planner.solver import Solution, solve
from edge_svd.planner.survey import Survey
from edge_svd.planner.targets import Setting, Targets
from edge_svd.planner.within import within_limits

ROUNDS = 6
CLOSE = 2e-5
"""A plan this close below the target is not worth another round."""


def make_plan(
    survey: Survey, source: Mapping[str, str], *, targets: Targets, setting: Setting, seed: int, size_of: SizeOf
) -> Plan:
    """The best plan that meets every target.

    Raises:
        BudgetError: there is none; names the smallest reachable value, what dominates it and what would help.
        InputError: an allocation that knows sizes alone is asked for another target.
    """
    draft = Draft(survey, source, targets, setting, seed, size_of)
    if targets.peak_rss_bytes is None and targets.decode_tokens_per_s is None:
        return _within_size(draft)
    if allocation(survey.allocation).same_ratio:
        raise InputError(
            f"The allocation {survey.allocation} keeps one ratio in every matrix and can aim at a --size alone; "
            "choose another for --ram and --min-decode-tps."
        )
    return within_limits(draft)


def _within_size(draft: Draft) -> Plan:
    """The best plan whose bundle is at most the target.

    What the weights may take is the target less everything else in the folder (graphs, tokenizer, manifest), which
    depends a little on the plan itself; a few rounds settle it.
    """
    candidates, survey = draft.candidates, draft.survey
    target_bytes = draft.targets.file_bytes or 0
    sizes = [[c.bytes for c in found] for found in candidates]
    least = [min(range(len(c)), key=lambda i: (c[i], i)) for c in sizes]
    smallest = draft.plan(draft.fixed(least))
    if smallest.file_bytes > target_bytes:
        # The target stands in the manifest too: name a size that succeeds when it is asked for.
        for _ in range(4):
            asked = replace(draft.targets, file_bytes=smallest.file_bytes)
            smallest = replace(draft, targets=asked).plan(draft.fixed(least))
        raise out_of_reach(FILE, smallest, draft.targets, draft.setting, False)
    costs = draft.file_costs()
    best = smallest
    low, high = 0, 2 * target_bytes  # budgets whose plans turned out to fit, and not to fit
    budget = sum(c[i] for c, i in zip(costs, least, strict=True)) + target_bytes - smallest.file_bytes
    for _ in range(ROUNDS):
        solution = _solve(survey, candidates, costs, budget)
        plan = smallest if solution is None else draft.plan(solution)
        spare = target_bytes - plan.file_bytes
        if spare >= 0 and price(plan, survey) < price(best, survey):
            best = plan
        low, high = (budget, high) if spare >= 0 else (low, budget)
        spent = budget if solution is None else solution.cost
        guess = spent + spare
        if high - low <= 1 or guess == budget or 0 <= spare <= CLOSE * target_bytes:
            break
        budget = guess if low < guess < high else (low + high) // 2
    return best


def _solve(
    survey: Survey, candidates: list[tuple[Candidate, ...]], costs: Sequence[Sequence[int]], budget: int
) -> Solution | None:
    if allocation(survey.allocation).same_ratio:
        return solve_same_ratio(survey.sites, candidates, budget)
    return solve(costs, [[c.score for c in found] for found in candidates], budget)
