from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.allocate import ALLOCATIONS, Field
from edge_svd.allocate.grouped import removals
from edge_svd.allocate.strs import RATIOS
from edge_svd.allocate.zero_sum import remaining_sum
from edge_svd.errors import InputError
from edge_svd.planner.by_rule import chosen


def field(seed: int, count: int = 6) -> Field:
    """Matrices of two types with ranks as options, losses falling as spectra do, and everything else measured."""
    rng = np.random.default_rng(seed)
    shapes = [(24, 24) if g % 2 else (40, 24) for g in range(count)]
    cost, loss, signed = [], [], []
    for m, n in shapes:
        even = -(-m * n // (m + n))
        cost.append(np.append(np.arange(even) * (m + n), m * n).astype(np.int64))
        energy = np.sort(np.exp(2 * rng.standard_normal(min(m, n))))[::-1]
        tail = np.append(energy[::-1].cumsum()[::-1], 0.0)
        loss.append(np.append(tail[:even], 0.0))
        step = rng.standard_normal(min(m, n)) * np.sqrt(energy)
        signed.append(np.append(step[: even - 1], step[even - 1 :].sum()))
    perplexities = {(g, r): float(np.exp(rng.random() * (1.2 - r))) for g in range(count) for r in RATIOS}
    return Field(
        types=["square" if g % 2 else "tall" for g in range(count)],
        full=[m * n for m, n in shapes],
        cost=cost,
        loss=loss,
        score=loss,
        signed=signed.__getitem__,
        measured=lambda g, ratio: perplexities[g, ratio],
    )


@pytest.mark.parametrize("name", ALLOCATIONS.names)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), ratio=st.floats(0.45, 0.98))
def test_every_allocation_spends_the_budget_to_within_a_component(name: str, seed: int, ratio: float) -> None:
    f = field(seed)
    budget = int(ratio * sum(f.full))
    choice = chosen(f, name, budget)
    assert choice is not None
    left = budget - f.spent(choice)
    steps = [int(cost[j + 1] - cost[j]) for cost, j in zip(f.cost, choice, strict=True) if j + 1 < len(cost)]
    traded = name in (
        "first-order",
        "second-order",
        "second-order-measured",
        "strs",
    )  # these may leave a little rather than lose more
    assert 0 <= left and (traded or not steps or left < max(steps))


@pytest.mark.parametrize("name", ALLOCATIONS.names)
def test_everything_is_kept_where_everything_fits_and_nothing_where_nothing_does(name: str) -> None:
    f = field(1)
    assert chosen(f, name, sum(f.full)) == [len(cost) - 1 for cost in f.cost]
    assert chosen(f, name, -1) is None


def test_uniform_keeps_one_ratio() -> None:
    f = field(2)
    choice = chosen(f, "uniform", int(0.6 * sum(f.full)))
    assert choice is not None
    for cost, full, j in zip(f.cost, f.full, choice, strict=True):
        assert cost[j] / full == pytest.approx(0.6, abs=1.5 * cost[1] / full)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), ratio=st.floats(0.3, 0.9))
def test_trading_loses_least(seed: int, ratio: float) -> None:
    """Against dynamic programming over budgets in units of the smallest component."""
    f = field(seed, 3)
    budget = int(ratio * sum(f.full))
    choice = chosen(f, "second-order", budget)
    assert choice is not None
    lost = sum(float(loss[j]) for loss, j in zip(f.loss, choice, strict=True))
    best = np.zeros(budget + 1)
    for cost, loss in zip(f.cost, f.loss, strict=True):
        row = np.full(budget + 1, np.inf)
        for price, value in zip(cost.tolist(), loss.tolist(), strict=True):
            if price <= budget:
                row[price:] = np.minimum(row[price:], best[: budget + 1 - price] + value)
        best = row
    assert best[budget] - 1e-9 <= lost <= best[budget] * 1.01
    uniform = chosen(f, "uniform", budget)
    assert uniform is not None and lost <= sum(float(loss[j]) for loss, j in zip(f.loss, uniform, strict=True)) + 1e-9


def test_measured_prices_move_parameters_to_what_loses_more_than_predicted() -> None:
    """By the root of measured over predicted, as if the type's losses were that much larger."""
    f = field(3)
    budget = int(0.6 * sum(f.full))
    plain = chosen(f, "second-order", budget)
    assert plain is not None

    def truncated(choice: Sequence[int], kind: str) -> float:
        assert list(choice) == plain
        own = sum(float(loss[j]) for of, loss, j in zip(f.types, f.loss, choice, strict=True) if of == kind)
        return own * (9.0 if kind == "square" else 1.0)

    found = chosen(replace(f, truncated=truncated), "second-order-measured", budget)
    wanted = [loss * 3.0 if kind == "square" else loss for kind, loss in zip(f.types, f.loss, strict=True)]
    assert found == chosen(replace(f, score=wanted), "second-order", budget) != plain
    assert chosen(f, "second-order-measured", budget) == plain


def test_grouped_follows_its_formula() -> None:
    losses = [1.0, 3.0, 9.0]
    inverse = [1 / math.log(math.e * loss) for loss in losses]
    expected = [3 * 0.2 * part / sum(inverse) for part in inverse]
    assert removals(losses, 0.2) == pytest.approx(expected)
    assert removals([5.0 * loss for loss in losses], 0.2) == pytest.approx(expected)  # units do not matter


@given(losses=st.lists(st.floats(0, 1e9), min_size=1, max_size=8), removed=st.floats(0, 0.94))
def test_grouped_removes_what_it_is_told_and_never_more_than_there_is(losses: list[float], removed: float) -> None:
    found = removals(losses, removed)
    assert sum(found) / len(found) == pytest.approx(removed, abs=1e-9)
    assert all(0 <= part <= 0.95 + 1e-9 for part in found)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), ratio=st.floats(0.3, 0.99))
def test_strs_finds_the_lowest_threshold_of_the_whole_table(seed: int, ratio: float) -> None:
    """Against every threshold that the table holds, tried in turn."""
    f = field(seed)
    budget, asked = int(ratio * sum(f.full)), set()
    measured = f.measured
    assert measured is not None

    def at(threshold: float) -> list[int]:
        kept = [next((r for r in RATIOS if measured(g, r) <= threshold), 1.0) for g in range(len(f.full))]
        return [f.within(g, share * full) for g, (share, full) in enumerate(zip(kept, f.full, strict=True))]

    thresholds = sorted(measured(g, r) for g in range(len(f.full)) for r in RATIOS)
    fitting = [t for t in thresholds if f.spent(at(t)) <= budget]

    def watched(g: int, share: float) -> float:
        asked.add((g, share))
        return measured(g, share)

    choice = chosen(replace(f, measured=watched), "strs", budget)
    if not fitting:
        assert choice is None
        return
    below = max((t for t in thresholds if t < fitting[0]), default=-math.inf)
    assert choice == f.filled(at(fitting[0]), budget, at(below))
    for g, share in asked:  # nothing beyond what the first choice over the budget passes through
        assert all(measured(g, r) > below for r in RATIOS if r < share)


def test_strs_keeps_most_of_what_is_most_sensitive() -> None:
    f = field(3)
    assert f.measured is not None
    choice = chosen(f, "strs", int(0.7 * sum(f.full)))
    assert choice is not None
    kept = [float(cost[j]) / full for cost, full, j in zip(f.cost, f.full, choice, strict=True)]
    # Where a step down of one matrix would cost less than what the worst of the others has, it was taken; filling
    # moves only up.
    worst = max(
        f.measured(g, r) for g, share in enumerate(kept) for r in RATIOS if abs(share - r) < 0.05 and share >= r - 0.04
    )
    for g, share in enumerate(kept):
        lower = [r for r in RATIOS if r < share - 0.1]
        assert all(f.measured(g, r) > worst or share > r for r in lower)
    assert len({round(share, 1) for share in kept}) > 1


def test_zero_sum_ends_near_zero() -> None:
    f = field(4, 12)
    assert f.signed is not None
    choice = chosen(f, "zero-sum", int(0.6 * sum(f.full)))
    assert choice is not None
    moved = sum(float(np.abs(f.signed(g)[j:]).sum()) for g, j in enumerate(choice))
    largest = max(float(np.abs(f.signed(g)).max()) for g in range(12))
    assert abs(remaining_sum(f, choice)) <= largest < moved


@pytest.mark.parametrize(("name", "words"), [("strs", "perplexities"), ("zero-sum", "signed changes")])
def test_what_a_plan_of_bytes_does_not_know_is_said(name: str, words: str) -> None:
    f = field(5)
    with pytest.raises(InputError, match=words):
        chosen(Field(f.types, f.full, f.cost, f.loss, f.score), name, 1000)
