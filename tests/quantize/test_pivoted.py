"""Pivoted factors: the rows chosen span the others, rounding is cheap, and the coefficients make good part of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.decompose.pivots import choose_pivots, damped
from edge_svd.errors import Failure, InputError
from edge_svd.formats import SiteFormat, tensors, weight_bytes
from edge_svd.planner.activations import handover_loss
from edge_svd.quantize.pivoted import round_pivoted
from edge_svd.quantize.rows import dequantise_rows, round_rows


def metric(n: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n, n)) * 10.0 ** rng.uniform(-spread, spread, n)
    return torch.from_numpy(x.T @ x / len(x))


def factors(m: int, n: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((m, k))), torch.from_numpy(rng.standard_normal((k, n)))


def loss(error: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor) -> float:
    return float(torch.trace(c_out @ error @ c_in @ error.T))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 39), st.integers(0, 2**31))
def test_pivot_rows_span_all_rows(m: int, n: int, k: int, seed: int) -> None:
    k = min(k, m - 1, n)
    b, a = factors(m, n, k, seed)
    pivots, rest = choose_pivots(b, a, metric(n, seed))
    assert sorted([*pivots.tolist(), *rest.tolist()]) == list(range(m)) and rest.tolist() == sorted(rest.tolist())
    c = torch.linalg.solve(b[pivots].T, b[rest].T).T
    w = b @ a
    assert float((c @ w[pivots] - w[rest]).abs().max()) <= 1e-6 * float(w.abs().max())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 39), st.integers(0, 2**31), st.booleans())
def test_a_matrix_of_that_rank_comes_back(m: int, n: int, k: int, seed: int, columns: bool) -> None:
    """Up to int8 rounding, which is at most a few steps of 1/127 for well-scaled inputs."""
    k = min(k, m - 1, n - 1)
    b, a = factors(m, n, k, seed)
    w, eye_in, eye_out = b @ a, torch.eye(n).double(), torch.eye(m).double()
    made = round_pivoted(w, b, a, eye_in, eye_out, columns=columns)
    assert float((made.matrix() - w).norm() / w.norm()) < 0.05
    assert sorted([*made.pivots.tolist(), *made.rest.tolist()]) == list(range(n if columns else m))
    assert bool((made.handover.diff() <= 0).all())


@pytest.mark.parametrize("columns", (False, True))
def test_coefficients_fit_the_rounded_pivots(columns: bool) -> None:
    """No other coefficients are better for the pivots as they ship: against a brute-force normal equation."""
    m, n, k = 12, 10, 4
    b, a = factors(m, n, k, 0)
    w = b @ a + 0.1 * factors(m, n, n, 1)[0] @ factors(m, n, n, 2)[1]
    c_in, c_out = metric(n, 3), metric(m, 4)
    found = round_pivoted(w, b, a, damped(c_in), damped(c_out), columns=columns)
    base = dequantise_rows(*found.base, torch.float64)
    dims = (k, n - k) if columns else (m - k, k)

    def built(c: torch.Tensor) -> torch.Tensor:
        made = torch.empty(m, n, dtype=torch.float64)
        if columns:
            made[:, found.pivots], made[:, found.rest] = base, base @ c
        else:
            made[found.pivots], made[found.rest] = base, c @ base
        return made

    # The loss is quadratic in C: columns of the Hessian and the gradient at zero by differences, then one solve.
    zero = built(torch.zeros(*dims).double())
    flat = [built(unit.reshape(dims)) - zero for unit in torch.eye(dims[0] * dims[1]).double()]
    hessian = torch.tensor([[float(torch.trace(c_out @ p @ c_in @ q.T)) for q in flat] for p in flat])
    gradient = torch.tensor([float(torch.trace(c_out @ (w - zero) @ c_in @ p.T)) for p in flat])
    best = torch.linalg.solve(hessian.double(), gradient.double()).reshape(dims)
    least = loss(w - built(best), c_in, c_out)
    reached = loss(w - found.matrix(), c_in, c_out)
    assert least * 0.999 <= reached <= least * 1.1
    rounded = dequantise_rows(*round_rows(best.float(), 8), torch.float64)
    assert loss(w - built(rounded), c_in, c_out) == pytest.approx(reached, rel=0.05)
    exact = torch.linalg.solve(b[found.pivots].T, b[found.rest].T).T if not columns else None
    if exact is not None:
        assert reached < loss(w - built(exact), c_in, c_out)


@pytest.mark.parametrize("columns", (False, True))
def test_the_price_of_rounding_what_is_handed_over(columns: bool) -> None:
    """Against a simulation: sixteen numbers on one scale between the two products, errors weighed by the metric."""
    m, n, k = 60, 50, 32
    b, a = factors(m, n, k, 0)
    rng = np.random.default_rng(5)
    b = b * torch.from_numpy(10.0 ** rng.uniform(-1, 1, (m, 1)))  # some outputs far larger than others
    c_in, c_out = metric(n, 1, 0.5), metric(m, 2, 0.5)
    found = round_pivoted(b @ a, b, a, damped(c_in), damped(c_out), columns=columns)
    x = torch.from_numpy(rng.standard_normal((4000, n))) @ torch.linalg.cholesky(c_in).T
    base, c = dequantise_rows(*found.base, torch.float64), dequantise_rows(*found.coefficients, torch.float64)
    h = x[:, found.pivots] + x[:, found.rest] @ c.T if columns else x @ base.T
    scale = h.reshape(-1, k // 16, 16).abs().amax(2, keepdim=True) / 127
    noise = (torch.round(h.reshape(-1, k // 16, 16) / scale) * scale).reshape(h.shape) - h
    moved = noise @ base.T if columns else noise @ c.T
    o = c_out if columns else c_out[found.rest][:, found.rest]
    measured = 0.5 * float(((moved @ o) * moved).sum(1).mean())
    assert handover_loss(found.handover, found.weight) == pytest.approx(measured, rel=0.4)


@pytest.mark.parametrize("columns", (False, True))
def test_a_singular_metric_and_a_dead_matrix_survive(columns: bool) -> None:
    m, n, k = 8, 6, 2
    b, a = factors(m, n, k, 0)
    flat = torch.zeros(n, n).double()
    flat[0, 0] = 1.0
    for c_in, c_out in ((flat, metric(m, 1)), (metric(n, 1), torch.zeros(m, m).double()), (flat * 0, metric(m, 1))):
        made = round_pivoted(b @ a, b, a, damped(c_in), damped(c_out), columns=columns)
        assert bool(torch.isfinite(made.matrix()).all())
    zero = round_pivoted(torch.zeros(m, n).double(), b * 0, a * 0, metric(n, 1), metric(m, 1), columns=columns)
    assert not zero.matrix().any()
    with pytest.raises(Failure, match="NaN or Inf"):
        round_pivoted(b @ a, b * float("nan"), a, metric(n, 1), metric(m, 1), columns=columns)


def test_the_formats_count_their_bytes_and_know_their_limits() -> None:
    shape = (64, 40)
    rows, columns = SiteFormat("row-pivoted", 16), SiteFormat("column-pivoted", 16)
    for fmt in (rows, columns):
        assert SiteFormat.from_json(fmt.to_json()) == fmt and fmt.factored and fmt.rank == 16
        # Never larger than the dense matrix but for the order and scales.
        for k in range(16, 40, 16):
            dense = weight_bytes(shape, SiteFormat("int8"))
            assert weight_bytes(shape, SiteFormat(fmt.kind, k)) <= dense + 4 * 64
        for bad in ((0, 0), (7, 0), (16, 16), (-16, 0)):
            with pytest.raises(InputError, match=fmt.kind):
                SiteFormat(fmt.kind, *bad)
        for odd in ((16, 40), (40, 16), (65_536, 64)):
            assert not fmt.fits(odd)
            with pytest.raises(InputError, match="cannot be kept"):
                tensors(odd, fmt)
    assert weight_bytes(shape, rows) == 16 * 48 + 48 * 16 + 2 * (16 + 48) + 2 * 64
    assert weight_bytes(shape, columns) == 64 * 16 + 16 * 32 + 2 * (64 + 16) + 2 * 48
