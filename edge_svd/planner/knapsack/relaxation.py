"""The linear relaxation of a multiple-choice knapsack under several limits, and the whole solutions next to it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import csr_array

from edge_svd.planner.knapsack.one_limit import silent_stdout

MOST_SETTLED = 20_000
"""Ways of settling split groups that are tried one by one."""

WHOLE = 1e-7
"""Shares this near to 0 or 1 are whole."""


@dataclass(frozen=True)
class Problem:
    """Candidates that no other one beats in everything, flat: `group[j]` and `index[j]` say whose each is."""

    group: NDArray[np.int64]
    index: NDArray[np.int64]
    cost: NDArray[np.int64]
    """[limits, candidates]"""
    score: NDArray[np.float64]
    groups: int

    def taken(self, keep: NDArray[np.int64]) -> Problem:
        return Problem(self.group[keep], self.index[keep], self.cost[:, keep], self.score[keep], self.groups)

    def one_each(self) -> csr_array:
        """[groups, candidates]: which candidate is whose."""
        ones, columns = np.ones(len(self.group)), np.arange(len(self.group))
        return csr_array((ones, (self.group, columns)), shape=(self.groups, len(self.group)))


@dataclass(frozen=True)
class Relaxed:
    """A lower bound of the score, every candidate's reduced cost and share, and the score that a unit of each limit is
    worth."""

    bound: float
    reduced: NDArray[np.float64]
    shares: NDArray[np.float64]
    prices: NDArray[np.float64]

    def taken(self, keep: NDArray[np.int64]) -> Relaxed:
        return replace(self, reduced=self.reduced[keep], shares=self.shares[keep])


def unbeaten(costs: Sequence[Sequence[Sequence[int]]], scores: Sequence[Sequence[float]]) -> Problem:
    """The candidates without those that another one beats or equals in everything."""
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
    return Problem(
        np.concatenate(groups), np.concatenate(indices), np.concatenate(columns, 1), np.concatenate(values), len(scores)
    )


def _scaled(problem: Problem, limit: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Scores in [0, 1] above each group's least, costs in units in which HiGHS's tolerance is less than one, spread."""
    least = np.full(problem.groups, np.inf)
    np.minimum.at(least, problem.group, problem.score)
    above = problem.score - least[problem.group]
    spread = max(float(above.max()), 1e-30)
    unit = np.maximum(1.0, limit / 2**24)
    return above / spread, problem.cost / unit[:, None], spread


def relax(problem: Problem, limit: NDArray[np.int64]) -> Relaxed | None:
    """The solution of the linear relaxation (HiGHS); None if even that has none."""
    if len(np.unique(problem.group)) < problem.groups:
        return None
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
    return Relaxed(bound, spread * (priced - least[problem.group]), np.asarray(result.x), spread * prices / unit)


def settle(problem: Problem, limit: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64] | None:
    """The best whole solution that agrees with the relaxation wherever that is whole; None if none fits."""
    whole = np.full(problem.groups, -1)
    order = np.argsort(shares, kind="stable")
    whole[problem.group[order]] = order
    split = np.unique(problem.group[(shares > WHOLE) & (shares < 1 - WHOLE)])
    choices = []
    for g in split:
        own = np.flatnonzero(problem.group == g)
        support = own[shares[own] > WHOLE]
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
