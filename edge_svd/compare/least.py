"""The least share of the parameters at which perplexity stays below a target."""

from __future__ import annotations

from collections.abc import Callable

STEPS = 256
"""Shares are looked at in steps of one 256th: eight measurements."""


def least_share(meets: Callable[[float], bool]) -> float:
    """The lowest share that `meets` says yes to, by bisection; 1, the whole model, without asking, where all others
    fail.

    Where yes and no alternate, a share that says yes next to one that says no (ASVD, arXiv 2312.05821, section 3.4,
    bisects a threshold to its target alike; what is returned has been measured, which the last midpoint need not be).
    """
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle / STEPS) else (middle, high)
    return high / STEPS
