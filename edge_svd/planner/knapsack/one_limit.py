"""Multiple-choice knapsack: one candidate per group, least total score within a byte budget, with a proven gap.

The linear relaxation is solved exactly over the lower convex hulls of the groups (Sinha and Zoltners 1979, "The
multiple-choice knapsack problem"): its value is a lower bound, and its slope λ gives every candidate a reduced cost.
Candidates whose reduced cost exceeds the distance between the bound and the rounded-down solution cannot be part of a
better one and are dropped; what is left, usually a few dozen, goes to HiGHS (scipy.optimize.milp).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

NODE_LIMIT = 2_000
RELATIVE_GAP = 5e-4


@dataclass(frozen=True)
class Solution:
    """choice[g] indexes group g's candidates; `bound` is below the optimum, gap = (score - bound) / score; `prices` are
    what a unit of each limit was worth at the relaxation, in the unit of the score."""

    choice: tuple[int, ...]
    cost: int
    score: float
    bound: float
    prices: tuple[float, ...] = ()

    @property
    def gap(self) -> float:
        return max(0.0, self.score - self.bound) / self.score if self.score > 0 else 0.0


def lower_hull(cost: NDArray[np.int64], score: NDArray[np.float64]) -> list[int]:
    """Indices of the lower convex hull of (cost, score), by rising cost and falling score."""
    hull: list[int] = []
    for i in sorted(range(len(cost)), key=lambda j: (int(cost[j]), float(score[j]))):
        if hull and score[i] >= score[hull[-1]]:
            continue
        while len(hull) >= 2:
            p, q = hull[-2], hull[-1]
            if (score[q] - score[p]) * (cost[i] - cost[p]) < (score[i] - score[p]) * (cost[q] - cost[p]):
                break
            hull.pop()
        hull.append(i)
    return hull


def solve(costs: Sequence[Sequence[int]], scores: Sequence[Sequence[float]], budget: int) -> Solution | None:
    """Pick one candidate per group so that total cost ≤ budget and total score is least; None if nothing fits."""
    cost = [np.asarray(c, dtype=np.int64) for c in costs]
    score = [np.asarray(s, dtype=np.float64) for s in scores]
    hulls = [lower_hull(c, s) for c, s in zip(cost, score, strict=True)]
    at = [0] * len(hulls)
    spent = sum(int(c[h[0]]) for c, h in zip(cost, hulls, strict=True))
    if spent > budget:
        return None
    steps = [
        ((score[g][h[i]] - score[g][h[i + 1]]) / (cost[g][h[i + 1]] - cost[g][h[i]]), g, i)
        for g, h in enumerate(hulls)
        for i in range(len(h) - 1)
    ]
    steps.sort(key=lambda step: (-step[0], step[1], step[2]))
    slope, fraction = 0.0, 0.0
    blocked: set[int] = set()
    relaxed = False
    for gain, g, i in steps:
        if g in blocked:
            continue
        extra = int(cost[g][hulls[g][i + 1]] - cost[g][hulls[g][i]])
        if spent + extra <= budget:
            at[g] = i + 1
            spent += extra
            continue
        if not relaxed:
            # The first step that does not fit fixes the relaxation; later ones only improve the rounded solution.
            slope, relaxed = gain, True
            fraction = gain * (budget - spent)
            bound = sum(float(score[k][hulls[k][at[k]]]) for k in range(len(hulls))) - fraction
        blocked.add(g)
    choice = [h[i] for h, i in zip(hulls, at, strict=True)]
    total = sum(float(s[c]) for s, c in zip(score, choice, strict=True))
    if not relaxed:
        return Solution(tuple(choice), spent, total, total, (0.0,))
    finished, dual = _finish(cost, score, budget, slope, float(bound), choice, total)
    spent = sum(int(c[i]) for c, i in zip(cost, finished, strict=True))
    reached = sum(float(s[i]) for s, i in zip(score, finished, strict=True))
    return Solution(tuple(finished), spent, reached, max(float(bound), min(dual, reached)), (slope,))


@contextmanager
def silent_stdout() -> Iterator[None]:
    """HiGHS prints some lines from C whatever its options say, where `--json` promises one object and nothing else."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed: nothing can be printed there
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        _flush_c()
        os.dup2(sink, 1)
        yield
    finally:
        _flush_c()
        os.dup2(kept, 1)
        os.close(sink)
        os.close(kept)


def _flush_c() -> None:
    """What C code has printed into a pipe waits in its own buffer until that is flushed."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


def _finish(
    cost: list[NDArray[np.int64]],
    score: list[NDArray[np.float64]],
    budget: int,
    slope: float,
    bound: float,
    choice: list[int],
    total: float,
) -> tuple[list[int], float]:
    """Exact finish over the candidates that reduced costs cannot exclude, and HiGHS's lower bound for it.

    A solution with an excluded candidate is no better than the rounded-down one, so the bound holds for all.
    """
    kept: list[tuple[int, int]] = []
    slack = (total - bound) * (1 + 1e-9) + 1e-15
    for g in range(len(cost)):
        reduced = score[g] + slope * cost[g]
        reduced = reduced - reduced.min()
        kept += [(g, i) for i in range(len(reduced)) if reduced[i] <= slack or i == choice[g]]
    base = min(float(score[g][i]) for g, i in kept)
    scale = max(max(float(score[g][i]) for g, i in kept) - base, 1e-30)
    unit = max(1.0, budget / 2**24)
    groups = csr_array((np.ones(len(kept)), ([g for g, _ in kept], range(len(kept)))), shape=(len(cost), len(kept)))
    # HiGHS works in doubles with an absolute tolerance of 1e-6: in these units that is less than a byte.
    weights = csr_array(np.array([[int(cost[g][i]) / unit for g, i in kept]]))
    with silent_stdout():
        result = milp(
            c=np.array([(score[g][i] - base) / scale for g, i in kept]),
            constraints=[LinearConstraint(groups, 1, 1), LinearConstraint(weights, -np.inf, budget / unit)],
            integrality=np.ones(len(kept)),
            bounds=(0, 1),
            options={"node_limit": NODE_LIMIT, "mip_rel_gap": RELATIVE_GAP},
        )
    if result.x is None:
        return choice, bound
    dual = float(result.mip_dual_bound) * scale + base * len(cost)
    picked = list(choice)
    for (g, i), value in zip(kept, result.x, strict=True):
        if value > 0.5:
            picked[g] = i
    if sum(int(c[i]) for c, i in zip(cost, picked, strict=True)) > budget:
        return choice, dual
    better = sum(float(s[i]) for s, i in zip(score, picked, strict=True)) <= total
    return (picked if better else choice), dual
