"""Row and component rounding: error bounds, exact representability, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.errors import Failure
from edge_svd.formats import INT8_LIMIT, INT16_LIMIT
from edge_svd.kernels.row_rounding import bfloat16_at_least
from edge_svd.quantize.components import round_components
from edge_svd.quantize.rows import dequantise_rows, round_rows

matrices = st.tuples(
    st.integers(1, 9), st.integers(1, 33), st.integers(0, 2**31), st.sampled_from([1e-12, 1e-4, 1.0, 1e5])
)


def make(m: int, n: int, seed: int, scale: float) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n)) * scale)


@settings(max_examples=80, deadline=None)
@given(matrices, st.sampled_from([(8, INT8_LIMIT), (16, INT16_LIMIT)]))
def test_rows_stay_within_half_a_step(spec: tuple[int, int, int, float], width: tuple[int, int]) -> None:
    w, (bits, limit) = make(*spec).float().double(), width
    q, scale = round_rows(w.float(), bits)
    assert int(q.int().abs().max()) <= limit
    error = (w - dequantise_rows(q, scale, torch.float64)).abs()
    # A quotient in fp32 is right to 2⁻²⁴ of itself, so a tie may be taken for its neighbour.
    assert bool((error <= (0.5 + limit * 2**-23) * scale.double()[:, None]).all())
    # The bfloat16 step is at most 1/128 coarser than the ideal one.
    assert bool((scale.double() <= w.abs().amax(1) / limit * (1 + 2**-7) + 1e-38).all())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31), st.sampled_from([8, 16]))
def test_components_against_a_loop(m: int, n: int, k: int, seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    b, a = (
        torch.from_numpy(rng.standard_normal((m, k)) * 10.0 ** rng.integers(-6, 6, k)),
        torch.from_numpy(rng.standard_normal((k, n))),
    )
    b_q, a_q, scale = round_components(b, a, bits)
    limit = INT8_LIMIT if bits == 8 else INT16_LIMIT
    for r in range(k):
        exact = torch.outer(b[:, r], a[r])
        rounded = float(scale[r]) * torch.outer(b_q[:, r].double(), a_q[r].double())
        step_b, step_a = float(b[:, r].abs().max()) / limit, float(a[r].abs().max()) / limit * (1 + 2**-7)
        bound = (0.5 * step_b * a[r].abs().max() + 0.5 * step_a * b[:, r].abs().max() + 0.25 * step_a * step_b) * 1.0001
        assert float((exact - rounded).abs().max()) <= float(bound)


def test_zero_rows_and_zero_components() -> None:
    q, scale = round_rows(torch.zeros(3, 4), 8)
    assert not q.any() and torch.isfinite(scale.float()).all() and bool((scale > 0).all())
    b, a, s = round_components(torch.zeros(3, 2), torch.zeros(2, 5), 8)
    assert not b.any() and not a.any() and bool((s > 0).all())


def test_int8_grid_is_exact() -> None:
    grid = torch.arange(-127, 128, dtype=torch.float32)[None] * 0.25
    q, scale = round_rows(grid, 8)
    assert torch.equal(dequantise_rows(q, scale), grid)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_is_refused(bad: float) -> None:
    w = torch.ones(2, 2)
    w[0, 1] = bad
    with pytest.raises(Failure, match="NaN or Inf"):
        round_rows(w, 8)
    with pytest.raises(Failure, match="NaN or Inf"):
        round_components(w, torch.ones(2, 2), 8)


def test_bfloat16_at_least_rounds_up() -> None:
    x = torch.tensor([1.0, 1.0000001, 3.1415926, 1e-30, 0.0])
    up = bfloat16_at_least(x)
    assert bool((up.float() >= x).all()) and float(up[0]) == 1.0 and float(up[-1]) == 1.0
    assert bool((up.float()[:4] <= x[:4] * (1 + 2**-7)).all())
