"""Multiple-choice knapsack under several limits at once: file bytes, resident bytes, time a token.

Branch and bound. The linear relaxation bounds the optimum from below and its prices give every candidate a reduced
cost; at most as many groups as there are limits are split between candidates, and settling those, then exchanging
pairs of choices, gives a whole solution next to it. Where that is not proven good enough, the candidates of the group
whose split matters most are divided between the parts of the split (Beale and Tomlin 1970, special ordered sets): one
vocabulary's table can weigh as much as all other matrices together, and no price makes it cost the mean of two formats.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_svd.planner.knapsack.exchange import exchanged
from edge_svd.planner.knapsack.one_limit import Solution, solve
from edge_svd.planner.knapsack.relaxation import WHOLE, Problem, Relaxed, relax, settle, unbeaten

NODES = 200
"""Relaxations solved at most; a few dozen are usual."""

GOOD = 1e-3
"""Relative gap at which a solution is good enough."""


@dataclass(frozen=True)
class _Node:
    """Candidates that are left at a node, and their relaxation."""

    keep: NDArray[np.int64]
    problem: Problem
    relaxed: Relaxed


def solve_several(
    costs: Sequence[Sequence[Sequence[int]]], scores: Sequence[Sequence[float]], budgets: Sequence[int]
) -> Solution | None:
    """One candidate per group with least total score and, for every limit l, total costs[l][group][candidate] at most
    budgets[l]; None if there is none. `Solution.cost` is the total of the first limit."""
    if any(budget < 0 for budget in budgets):
        return None
    if len(budgets) == 1:
        return solve(costs[0], scores, budgets[0])
    problem = unbeaten(costs, scores)
    search = _Search(problem, np.array(budgets, dtype=np.int64))
    found, bound = search.run()
    if found is None:
        return None
    choice = problem.index[found[np.argsort(problem.group[found])]]
    score = sum(float(group[i]) for group, i in zip(scores, choice, strict=True))
    cost = sum(int(group[i]) for group, i in zip(costs[0], choice, strict=True))
    return Solution(tuple(int(i) for i in choice), cost, score, min(bound, score), search.prices)


class _Search:
    """Best first: the node of least bound is divided next, so that its bound is that of the whole search."""

    def __init__(self, problem: Problem, limit: NDArray[np.int64]) -> None:
        self.problem, self.limit = problem, limit
        self.found: NDArray[np.int64] | None = None
        self.best = np.inf
        self.prices: tuple[float, ...] = ()
        self.open: list[tuple[float, int, _Node]] = []
        self.count = itertools.count()

    def run(self) -> tuple[NDArray[np.int64] | None, float]:
        """The best solution found and a lower bound of all."""
        self.look_at(np.arange(len(self.problem.group)), -np.inf)
        while self.open:
            bound, number, node = heapq.heappop(self.open)
            good = self.found is not None and self.best - bound <= GOOD * abs(self.best)
            if good or number >= NODES:
                return self.found, bound
            parts = divided(node.problem, node.relaxed)
            for part in parts:
                self.look_at(node.keep[part], bound)
        return self.found, self.best

    def look_at(self, keep: NDArray[np.int64], least: float) -> None:
        """Solve the relaxation of some candidates, take what it gives, and leave them open if better can be there."""
        problem = self.problem.taken(keep)
        relaxed = relax(problem, self.limit)
        if relaxed is None:
            return
        self.prices = self.prices or tuple(float(price) for price in relaxed.prices)
        bound = max(relaxed.bound, least)
        made = settle(problem, self.limit, relaxed.shares)
        if made is not None:
            made = exchanged(problem, relaxed.reduced, self.limit, made)
            score = float(problem.score[made].sum())
            if score < self.best:
                self.found, self.best = keep[made], score
        if bound < self.best:
            # What costs more than the distance between the two cannot be part of a better solution.
            near = np.flatnonzero(relaxed.reduced <= (self.best - relaxed.bound) * (1 + 1e-9) + 1e-12)
            node = _Node(keep[near], problem.taken(near), relaxed.taken(near))
            heapq.heappush(self.open, (bound, next(self.count), node))


def divided(problem: Problem, relaxed: Relaxed) -> list[NDArray[np.int64]]:
    """The candidates in two parts, neither of which can make the split that weighs most; none if no group has a choice.

    A relaxation that is whole may be over a limit by less than HiGHS sees; then the widest group is halved.
    """
    split = np.flatnonzero((relaxed.shares > WHOLE) & (relaxed.shares < 1 - WHOLE))
    parts = split if len(split) else np.arange(len(problem.group))
    shares = np.maximum(relaxed.shares, WHOLE)
    widest, found = 0.0, []
    for group in np.unique(problem.group[parts]):
        own = parts[problem.group[parts] == group]
        for row, price in zip(problem.cost, relaxed.prices, strict=True):
            least, most = int(row[own].min()), int(row[own].max())
            width = max(float(price), 1e-30) * (most - least)
            if width > widest:
                mean = min(max(float(shares[own] @ row[own]) / float(shares[own].sum()), least), most - 1)
                of_it = problem.group == group
                found = [np.flatnonzero(~of_it | (row <= mean)), np.flatnonzero(~of_it | (row > mean))]
                widest = width
    return found
