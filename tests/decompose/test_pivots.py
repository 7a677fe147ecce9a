"""Pivot rows and coefficients are the same matrix in fewer numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.decompose.pivots import choose_pivots, pivot_factors
from edge_svd.errors import Failure


def drawn(
    m: int, n: int, k: int, seed: int, rank: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """B [m, k], A [k, n] with a product of that rank, and a second moment of inputs that differ in size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(3 * n, n) * 10 ** (3 * torch.rand(n, generator=generator, dtype=torch.float64))
    b = normal(m, k) if rank is None else normal(m, rank) @ normal(rank, k)
    return b * torch.exp(normal(m, 1)), normal(k, n), x.T @ x / len(x)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40), st.integers(0, 2**31), st.booleans())
def test_they_make_the_same_matrix(m: int, n: int, k: int, seed: int, deficient: bool) -> None:
    k = min(k, m, n)
    b, a, c_in = drawn(m, n, k, seed, max(k // 2, 1) if deficient else None)
    made_b, made_a = pivot_factors(b, a, c_in)
    assert made_b.shape == b.shape and made_a.shape == a.shape
    scale = float((b @ a).norm()) if k else 1.0
    assert float((made_b @ made_a - b @ a).norm()) <= 1e-9 * scale
    ones = [row for row in made_b if float(row.abs().sum()) == 1.0 and float(row.max()) == 1.0]
    assert len({int(row.argmax()) for row in ones}) >= k  # the identity, in rows of its own: nothing to store


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (80, 80)])
def test_nothing_is_lost_in_fp32(shape: tuple[int, int]) -> None:
    """Coefficients stay small, so that rounding to fp32 costs what rounding B and A to fp32 does."""
    m, n = shape
    b, a, c_in = drawn(m, n, 48, 7)
    made_b, made_a = pivot_factors(b, a, c_in)
    x = torch.randn(n, 50, dtype=torch.float64) * c_in.diagonal().sqrt()[:, None]
    y = b @ a @ x
    error = (made_b.float().double() @ (made_a.float().double() @ x) - y).norm(dim=1) / y.norm(dim=1)
    assert float(error.max()) < 1e-5


def test_the_pivots_are_those_that_rounding_uses() -> None:
    b, a, c_in = drawn(30, 20, 9, 3)
    pivots, rest = choose_pivots(b, a, c_in)
    made_b, made_a = pivot_factors(b, a, c_in)
    assert torch.equal(made_b[pivots].sum(1), torch.ones(9).double())
    assert torch.allclose(made_a[made_b[pivots].argmax(1)], b[pivots] @ a)
    assert len(rest) == 21


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for spoiled in range(3):
        parts = list(drawn(12, 10, 4, 0))
        parts[spoiled][1, 1] = bad
        with pytest.raises(Failure, match="NaN or Inf"):
            pivot_factors(*parts)
