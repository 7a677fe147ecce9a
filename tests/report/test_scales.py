"""Axes of the charts: every value on them, ticks within them and few enough to read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_svd.report.palette import DARK, LIGHT, contrast, tint
from edge_svd.report.scales import Scale, linear_range, linear_ticks, log_range, log_ticks, tick_label

positive = st.floats(1e-6, 1e9)


@given(st.lists(positive, min_size=1, max_size=20), st.booleans(), st.integers(3, 12))
def test_ranges_hold_the_values_and_ticks_lie_within(values: list[float], log: bool, most: int) -> None:
    low, high = log_range(values) if log else linear_range(values)
    assert low < min(values) <= max(values) < high
    scale = Scale(low, high, 10, 310, log)
    assert all(10 <= scale(value) <= 310 for value in values)
    ticks = log_ticks(low, high, most) if log else linear_ticks(low, high, most)
    assert len(ticks) <= most + 1
    assert all(10 - 1e-3 <= scale(tick) <= 310 + 1e-3 for tick in ticks)


@given(st.lists(positive, min_size=2, max_size=20, unique=True), st.booleans())
def test_order_is_kept(values: list[float], log: bool) -> None:
    low, high = log_range(values) if log else linear_range(values)
    scale = Scale(low, high, 0, 100, log)
    ordered = [scale(value) for value in sorted(values)]
    assert ordered == sorted(ordered)


def test_labels_are_short() -> None:
    assert [tick_label(value) for value in (0.003, 150.0, 1e-5, 0.0, 2e7)] == ["0.003", "150", "1e-05", "0", "2e+07"]


@pytest.mark.parametrize("number", range(len(LIGHT)))
def test_text_can_be_read_on_every_cell(number: int) -> None:
    for bits in (0.0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 16):
        fill, ink = tint(number, bits)
        assert contrast(fill, ink) >= 4.5


def test_lines_stand_out_from_both_backgrounds() -> None:
    assert all(contrast(colour, "#ffffff") >= 4.5 for colour in LIGHT)
    assert all(contrast(colour, "#191c22") >= 4.5 for colour in DARK)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
