"""The solver under several limits against brute force, and its claims about bound and gap."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge_svd.planner.knapsack.several_limits import solve_several

Entry = tuple[int, int, int, float]
cost = st.integers(1, 40)
problems = st.lists(
    st.lists(st.tuples(cost, cost, cost, st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def brute_force(problem: list[list[Entry]], budgets: list[int]) -> float | None:
    totals = [
        sum(entry[3] for entry in pick)
        for pick in itertools.product(*problem)
        if all(sum(entry[limit] for entry in pick) <= budget for limit, budget in enumerate(budgets))
    ]
    return min(totals) if totals else None


def parts(problem: list[list[Entry]], limits: int) -> tuple[list[list[list[int]]], list[list[float]]]:
    costs = [[[entry[limit] for entry in group] for group in problem] for limit in range(limits)]
    return costs, [[entry[3] for entry in group] for group in problem]


@settings(max_examples=200, deadline=None)
@example([[(1, 3, 1, 0.0), (1, 2, 1, 1.0), (4, 1, 1, 0.0)]], [3, 2])  # what the relaxation splits fits neither way
@given(problems, st.lists(st.integers(1, 160), min_size=1, max_size=3))
def test_matches_brute_force(problem: list[list[Entry]], budgets: list[int]) -> None:
    expected = brute_force(problem, budgets)
    costs, scores = parts(problem, len(budgets))
    found = solve_several(costs, scores, budgets)
    if expected is None:
        assert found is None
        return
    assert found is not None
    for limit, budget in zip(costs, budgets, strict=True):
        assert sum(group[i] for group, i in zip(limit, found.choice, strict=True)) <= budget
    assert found.score == pytest.approx(sum(group[i] for group, i in zip(scores, found.choice, strict=True)))
    assert found.bound <= expected + 1e-6
    # HiGHS stops at a relative gap of 5e-4 of the scores' spread.
    spread = max(entry[3] for group in problem for entry in group)
    assert found.score <= expected + 1e-3 * (expected + spread * len(problem)) + 1e-9


def synthetic(groups: int, ranks: int = 60) -> tuple[list[list[list[int]]], list[list[float]]]:
    rng = np.random.default_rng(1)
    size, resident, time, scores = [], [], [], []
    for _ in range(groups):
        k, width, scale = np.arange(1, ranks), int(rng.integers(500, 3000)), rng.uniform(0.01, 1)
        size.append((k * width * 16).tolist())
        resident.append((k * width * 28 + 20_000 * rng.integers(1, 3, len(k))).tolist())
        time.append((4_000 * rng.integers(1, 3, len(k)) + k * width).tolist())
        scores.append((scale * np.exp(-k / rng.uniform(3, 15))).tolist())
    return [size, resident, time], scores


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.9), (0.7, 0.4, 0.6), (0.6, 0.55, 0.55)])
def test_gap_is_small_on_a_model_sized_problem(shares: tuple[float, ...]) -> None:
    costs, scores = synthetic(211)
    budgets = [int(share * sum(max(group) for group in limit)) for share, limit in zip(shares, costs, strict=True)]
    found = solve_several(costs, scores, budgets)
    assert found is not None and 0 <= found.gap <= 0.001
    for limit, budget in zip(costs, budgets, strict=True):
        assert sum(group[i] for group, i in zip(limit, found.choice, strict=True)) <= budget


def test_a_limit_that_does_not_bind_changes_nothing() -> None:
    costs, scores = synthetic(40)
    budget = sum(max(group) for group in costs[0]) // 2
    alone = solve_several(costs[:1], scores, [budget])
    both = solve_several(costs[:2], scores, [budget, 10**12])
    assert alone is not None and both is not None
    assert math.isclose(alone.score, both.score, rel_tol=1e-3)


def test_each_limit_alone_can_be_met_but_not_both() -> None:
    costs = [[[1, 9]], [[9, 1]]]
    assert solve_several(costs, [[0.0, 0.0]], [5, 9]) is not None
    assert solve_several(costs, [[0.0, 0.0]], [5, 5]) is None
