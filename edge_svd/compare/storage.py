"""What factors of a matrix cost in parameters, by how they are stored."""

from __future__ import annotations

from bisect import bisect_right

from edge_svd.errors import InputError

PLAIN, PIVOTED = "plain", "pivoted"
"""B and A; or pivot rows and the coefficients of the others (`decompose.pivots`), k² numbers fewer for one matrix."""

STORAGES = (PLAIN, PIVOTED)

Shape = tuple[int, int]


def check_storage(name: str) -> None:
    """InputError on a name that is none of them."""
    if name not in STORAGES:
        raise InputError(f"There are no factors called {name!r}; choose from {', '.join(STORAGES)}.")


def parameters(shape: Shape, rank: int, storage: str) -> int:
    """Of a matrix [m, n] of that rank: k (m + n), or k (m + n - k)."""
    m, n = shape
    return rank * (m + n - (rank if storage == PIVOTED else 0))


def break_even(shape: Shape, storage: str) -> int:
    """The lowest rank at which the factors save nothing."""
    m, n = shape
    return min(m, n) if storage == PIVOTED else -(-m * n // (m + n))


def rank_within(shape: Shape, most: float, storage: str) -> int:
    """The highest rank of factors of at most that many parameters."""
    ranks = range(min(shape) + 1)
    return max(bisect_right(ranks, most, key=lambda rank: parameters(shape, rank, storage)) - 1, 0)
