"""Multiple-choice knapsack under several limits at once: file bytes, resident bytes, time a token.

The linear relaxation (HiGHS) bounds the optimum from below and its prices give every candidate a reduced cost; at most
as many groups as there are limits are split, and the best way to settle those gives a first whole solution. Candidates
whose reduced cost exceeds the distance between the two cannot be part of a better one. Of the rest, the few dozen with
the least go to HiGHS's branch and bound first, and more only while what they give is not proven good enough.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array

from edge_svd.planner.solver import RELATIVE_GAP, Solution, silent_stdout, solve

MOST_SETTLED = 20_000
"""Ways of settling split groups that are tried one by one."""

CLOSENESS = (1e-3, 5e-3, 2e-2, np.inf)
"""Shares of the relaxed score within which candidates are kept, tried in turn until the solution is proven good."""

NODES = 100
"""HiGHS finds what it will find in the first of them; thousands prove half a thousandth more, in half a minute."""

GOOD = 1e-3
"""Relative gap at which a solution is good enough."""


@dataclass(frozen=True)
class _Problem:
    """Candidates that no other one beats in everything, flat: `group[j]` and `index[j]` say whose each is."""

    group: NDArray[np.int64]
    index: NDArray[np.int64]
    cost: NDArray[np.int64]
    """[limits, candidates]"""
    score: NDArray[np.float64]
    groups: int

    def taken(self, keep: NDArray[np.bool_]) -> _Problem:
        return _Problem(self.group[keep], self.index[keep], self.cost[:, keep], self.score[keep], self.groups)

    def one_each(self) -> csr_array:
        """[groups, candidates]: which candidate is whose."""
        ones, columns = np.ones(len(self.group)), np.arange(len(self.group))
        return csr_array((ones, (self.group, columns)), shape=(self.groups, len(self.group)))


def solve_several(
    costs: Sequence[Sequence[Sequence[int]]], scores: Sequence[Sequence[float]], budgets: Sequence[int]
) -> Solution | None:
    """One candidate per group with least total score and, for every limit l, total costs[l][group][candidate] at most
    budgets[l]; None if there is none. `Solution.cost` is the total of the first limit."""
    if any(budget < 0 for budget in budgets):
        return None
    if len(budgets) == 1:
        return solve(costs[0], scores, budgets[0])
    problem = _unbeaten(costs, scores)
    limit = np.array(budgets, dtype=np.int64)
    relaxed = _relax(problem, limit)
    if relaxed is None:
        return None
    bound, reduced, shares = relaxed
    found = _settle(problem, limit, shares)
    best = float(problem.score[found].sum()) if found is not None else np.inf
    proven = bound
    for share in CLOSENESS:
        # Candidates that cost more than the incumbent's distance to the bound cannot be part of a better solution.
        near = share * abs(bound) if share < np.inf else np.inf
        slack = min(near, best - bound) * (1 + 1e-9) + 1e-12 * (1 + abs(bound))
        keep = reduced <= slack
        if found is not None:
            keep[found] = True
        finished, dual = _finish(problem.taken(keep), limit)
        if finished is not None:
            finished = np.flatnonzero(keep)[finished]
            if float(problem.score[finished].sum()) <= best:
                found, best = finished, float(problem.score[finished].sum())
        # A solution with a dropped candidate scores at least bound + slack.
        proven = max(proven, min(dual, bound + slack))
        if found is not None and (best - proven <= GOOD * abs(best) or slack > best - bound):
            break
    if found is None:
        return None
    choice = problem.index[found[np.argsort(problem.group[found])]]
    score = sum(float(group[i]) for group, i in zip(scores, choice, strict=True))
    cost = sum(int(group[i]) for group, i in zip(costs[0], choice, strict=True))
    return Solution(tuple(int(i) for i in choice), cost, score, min(proven, score))


def _unbeaten(costs: Sequence[Sequence[Sequence[int]]], scores: Sequence[Sequence[float]]) -> _Problem:
    groups, indices, columns, values = [], [], [], []
    for g, own in enumerate(scores):
        cost = np.array([limit[g] for limit in costs], dtype=np.int64)
        score = np.asarray(own, dtype=np.float64)
        no_worse = (cost[:, :, None] <= cost[:, None, :]).all(0) & (score[:, None] <= score[None, :])
        better = (cost[:, :, None] < cost[:, None, :]).any(0) | (score[:, None] < score[None, :])
        first = np.tri(len(score), k=-1, dtype=bool).T
        kept = np.flatnonzero(~(no_worse & (better | first)).any(0))
        groups.append(np.full(len(kept), g))
        indices.append(kept)
        columns.append(cost[:, kept])
        values.append(score[kept])
    return _Problem(
        np.concatenate(groups), np.concatenate(indices), np.concatenate(columns, 1), np.concatenate(values), len(scores)
    )


def _scaled(problem: _Problem, limit: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Scores in [0, 1] above each group's least, costs in units in which HiGHS's tolerance is less than one, spread."""
    least = np.full(problem.groups, np.inf)
    np.minimum.at(least, problem.group, problem.score)
    above = problem.score - least[problem.group]
    spread = max(float(above.max()), 1e-30)
    unit = np.maximum(1.0, limit / 2**24)
    return above / spread, problem.cost / unit[:, None], spread


def _relax(
    problem: _Problem, limit: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64], NDArray[np.float64]] | None:
    """(lower bound, reduced costs, shares) of the linear relaxation; None if even that has no solution."""
    score, cost, spread = _scaled(problem, limit)
    unit = np.maximum(1.0, limit / 2**24)
    with silent_stdout():
        result = linprog(
            score,
            A_ub=csr_array(cost),
            b_ub=limit / unit,
            A_eq=problem.one_each(),
            b_eq=np.ones(problem.groups),
            bounds=(0, 1),
            method="highs",
        )
    if result.x is None or result.status == 2:
        return None
    prices = np.maximum(-np.asarray(result.ineqlin.marginals), 0.0)
    priced = score + prices @ cost
    least = np.full(problem.groups, np.inf)
    np.minimum.at(least, problem.group, priced)
    base = np.full(problem.groups, np.inf)
    np.minimum.at(base, problem.group, problem.score)
    # The Lagrangian bound at these prices: valid whatever HiGHS's tolerances are.
    bound = spread * float(least.sum() - prices @ (limit / unit)) + float(base.sum())
    return bound, spread * (priced - least[problem.group]), np.asarray(result.x)


def _settle(problem: _Problem, limit: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The best whole solution that agrees with the relaxation wherever that is whole; None if none fits."""
    whole = np.full(problem.groups, -1)
    order = np.argsort(shares, kind="stable")
    whole[problem.group[order]] = order
    split = np.unique(problem.group[(shares > 1e-7) & (shares < 1 - 1e-7)])
    choices = []
    for g in split:
        own = np.flatnonzero(problem.group == g)
        support = own[shares[own] > 1e-7]
        cheapest = [own[np.argmin(row[own])] for row in problem.cost]
        choices.append(list(dict.fromkeys([*support.tolist(), *(int(i) for i in cheapest)])))
    fixed = np.setdiff1d(np.arange(problem.groups), split)
    spent = problem.cost[:, whole[fixed]].sum(1)
    best: tuple[float, tuple[int, ...]] | None = None
    for picked in itertools.islice(itertools.product(*choices), MOST_SETTLED):
        at = list(picked)
        if (spent + problem.cost[:, at].sum(1) <= limit).all():
            total = float(problem.score[at].sum())
            if best is None or total < best[0]:
                best = total, picked
    if best is None:
        return None
    whole[split] = best[1]
    return whole


def _finish(problem: _Problem, limit: NDArray[np.int64]) -> tuple[NDArray[np.int64] | None, float]:
    """HiGHS's best whole solution over the candidates left, and its lower bound for them."""
    score, cost, spread = _scaled(problem, limit)
    unit = np.maximum(1.0, limit / 2**24)
    with silent_stdout():
        result = milp(
            c=score,
            constraints=[
                LinearConstraint(problem.one_each(), 1, 1),
                LinearConstraint(csr_array(cost), -np.inf, limit / unit),
            ],
            integrality=np.ones(len(score)),
            bounds=(0, 1),
            options={"node_limit": NODES, "mip_rel_gap": RELATIVE_GAP},
        )
    base = np.full(problem.groups, np.inf)
    np.minimum.at(base, problem.group, problem.score)
    dual = getattr(result, "mip_dual_bound", None)
    lower = spread * float(dual) + float(base.sum()) if dual is not None else -np.inf
    if result.x is None:
        return None, np.inf if result.status == 2 else lower
    picked = np.flatnonzero(result.x > 0.5)
    if len(picked) != problem.groups or (problem.cost[:, picked].sum(1) > limit).any():
        return None, lower
    return picked[np.argsort(problem.group[picked])], lower
