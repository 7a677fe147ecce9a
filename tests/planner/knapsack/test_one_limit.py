"""The knapsack solver against brute force, and its claims about bound and gap."""

from __future__ import annotations

import ctypes
import itertools
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.planner.knapsack.one_limit import lower_hull, silent_stdout, solve

Group = list[tuple[int, float]]
groups = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10, allow_nan=False)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


def brute_force(problem: list[Group], budget: int) -> float | None:
    """Least total score over every combination that fits."""
    totals = [
        sum(score for _, score in pick)
        for pick in itertools.product(*problem)
        if sum(cost for cost, _ in pick) <= budget
    ]
    return min(totals) if totals else None


@settings(max_examples=150, deadline=None)
@given(groups, st.integers(1, 250))
def test_matches_brute_force(problem: list[Group], budget: int) -> None:
    expected = brute_force(problem, budget)
    found = solve([[c for c, _ in g] for g in problem], [[s for _, s in g] for g in problem], budget)
    if expected is None:
        assert found is None
        return
    assert found is not None and found.cost <= budget
    assert found.cost == sum(g[i][0] for g, i in zip(problem, found.choice, strict=True))
    assert found.score == pytest.approx(sum(g[i][1] for g, i in zip(problem, found.choice, strict=True)))
    assert found.bound <= expected + 1e-9
    # HiGHS stops at a relative gap of 5e-4 of the scores' spread.
    spread = max(s for g in problem for _, s in g)
    assert found.score <= expected + 1e-3 * (expected + spread * len(problem)) + 1e-9


def test_gap_is_small_on_a_model_sized_problem() -> None:
    rng = np.random.default_rng(0)
    costs, scores = [], []
    for _ in range(211):
        rank = np.arange(1, 40)
        scale = rng.uniform(0.01, 1)
        costs.append((rank * int(rng.integers(500, 3000)) * 16).tolist())
        scores.append((scale * np.exp(-rank / rng.uniform(3, 15))).tolist())
    full = sum(max(c) for c in costs)
    for share in (0.3, 0.6, 0.9):
        found = solve(costs, scores, int(full * share))
        assert found is not None
        assert 0 <= found.gap <= 0.005
        assert found.cost <= full * share


def test_nothing_fits_and_everything_fits() -> None:
    assert solve([[5, 9]], [[1.0, 0.0]], 4) is None
    found = solve([[5, 9], [3]], [[1.0, 0.0], [0.5]], 100)
    assert found is not None and found.choice == (1, 0) and found.gap == 0


def test_lower_hull_drops_dominated_and_concave_points() -> None:
    cost, score = np.array([1, 2, 3, 4, 5]), np.array([10.0, 9.5, 4.0, 5.0, 3.9])
    assert lower_hull(cost, score) == [0, 2, 4]


def test_what_the_solver_library_prints_stays_off_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with silent_stdout():
        ctypes.CDLL(None).printf(b"buffered in C")
        os.write(1, b"from C")
    os.write(1, b"after")
    assert capfd.readouterr().out == "after"
