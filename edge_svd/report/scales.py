"""Axes: where a value lies on one, and which values carry a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] linearly, or by its logarithm, onto [start, end] in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def linear_range(values: Sequence[float], *, zero: bool = False, room: float = 0.06) -> tuple[float, float]:
    """A range that holds all values with some room; from zero up with `zero`. `values` is not empty."""
    low, high = (0.0 if zero else min(values)), max(values)
    spread = (high - low) or abs(high) or 1.0
    return (low if zero else low - room * spread), high + room * spread


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """A range on a logarithmic axis that holds all values, which are positive, with some room."""
    low, high = min(values), max(values)
    room = max((high / low) ** 0.06, 1.25)
    return low / room, high * room


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round values within the range."""
    raw = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in STEPS if factor * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Powers of ten, with 2 and 5 times them, or 1 to 9 times, where the range is short; at most about `most`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= most:
            return found
    stride = -(-len(found) // most)
    return found[::stride]


def tick_label(value: float) -> str:
    """A number as an axis shows it: 0.02, 150, 1e-05."""
    return f"{value:.6g}" if value == 0 or 1e-4 <= abs(value) < 1e6 else f"{value:.0e}"
