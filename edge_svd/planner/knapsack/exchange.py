"""Better whole solutions of a multiple-choice knapsack under several limits: one or two choices exchanged at a time.

Measured against prices from the linear relaxation, a solution is off the bound by what its choices cost above the best
of their groups and by what it leaves unused of the limits. Of a few hundred cheap candidates there are a hundred
thousand pairs, among which one nearly always uses up what is left.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_svd.planner.knapsack.relaxation import Problem

MOST_EXCHANGED = 700
"""Candidates looked at in pairs, those of least reduced cost."""


def exchanged(
    problem: Problem, reduced: NDArray[np.float64], limit: NDArray[np.int64], found: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`found` [groups], the candidate of every group, with exchanges of one or two as long as they lower the score.

    reduced [candidates]: what each costs above the best of its group at the relaxation's prices; limit [limits].
    """
    group, cost, score = problem.group, problem.cost, problem.score
    at = np.empty(len(found), dtype=np.int64)
    at[group[found]] = found
    near = np.argsort(reduced, kind="stable")[:MOST_EXCHANGED]
    other_group = group[near][:, None] != group[near][None, :]
    while True:
        left = limit - cost[:, at].sum(1)
        more = cost[:, near] - cost[:, at[group[near]]]
        better = score[near] - score[at[group[near]]]
        # The change of one choice stands on the diagonal.
        total = np.where(other_group, better[:, None] + better[None, :], np.inf)
        np.fill_diagonal(total, better)
        for room, of_one in zip(left, more, strict=True):
            pairs = of_one[:, None] + of_one[None, :]
            np.fill_diagonal(pairs, of_one)
            total[pairs > room] = np.inf
        best = int(total.argmin())
        i, j = divmod(best, len(near))
        if not total[i, j] < -1e-12 * abs(float(score[at].sum())):
            return at
        at[group[near[[i, j]]]] = near[[i, j]]
