"""Trellis codes against plain loops: what a path decodes to, that the best path is found, what feedback is worth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding_metrics import metric, weights

from edge_svd.errors import Failure
from edge_svd.formats import TRELLIS_BITS, SiteFormat, tensors
from edge_svd.planner.loss import quadratic
from edge_svd.quantize import trellis
from edge_svd.quantize.feedback import unit_factor
from edge_svd.quantize.table import TableMetric, dealt, dealt_as, groups_of, round_table, row_noise
from edge_svd.quantize.trellis import (
    InputFactor,
    decode,
    pack,
    predicted_loss,
    round_trellis,
    row_scale,
    sampled_error,
    target_power,
    unpack,
)
from edge_svd.trellis_code import TrellisCode, trellis_code


def decoded_one_by_one(symbols: np.ndarray, code: TrellisCode) -> np.ndarray:
    """The level of every weight from its own symbol and those of its neighbours above and to the right."""
    m, n = symbols.shape
    levels = np.zeros((m, n), np.int8)
    for i in range(m):
        for j in range(n):
            window = 0
            for back in range(code.window // code.bits, -1, -1):
                inside = i - back >= 0 and j + back < n
                window = (window << code.bits) | (int(symbols[i - back, j + back]) if inside else 0)
            levels[i, j] = code.levels[window & ((1 << code.window) - 1)]
    return levels


@pytest.mark.parametrize("bits", TRELLIS_BITS)
@pytest.mark.parametrize("shape", [(1, 16), (3, 48), (40, 16)])
def test_decoding_is_the_loop(bits: int, shape: tuple[int, int]) -> None:
    symbols = np.random.default_rng(bits).integers(0, 1 << bits, shape).astype(np.uint8)
    code = trellis_code(bits)
    np.testing.assert_array_equal(decode(symbols, code), decoded_one_by_one(symbols, code))


@given(st.sampled_from(TRELLIS_BITS), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_planes_hold_every_symbol(bits: int, m: int, n: int, seed: int) -> None:
    symbols = np.random.default_rng(seed).integers(0, 1 << bits, (m, 16 * n)).astype(np.uint8)
    planes = pack(symbols, bits)
    np.testing.assert_array_equal(unpack(planes, bits), symbols)
    expected = tensors((m, 16 * n), SiteFormat("trellis", bits=bits))
    assert {suffix: ("uint8", plane.shape) for suffix, plane in planes.items()} == {
        suffix: expected[suffix] for suffix in planes
    }
    assert set(expected) - set(planes) == {"s8", "order"}


@pytest.mark.parametrize("bits", [1, 2])
def test_the_path_is_the_best_one(bits: int) -> None:
    """Without feedback every antidiagonal is a sequence of its own: try all of them."""
    m = n = 16
    plain = torch.eye(n, dtype=torch.float64)
    w = weights(m, n, seed=bits)
    made = round_trellis(w, InputFactor.of(plain), unit_factor(plain), bits)
    code, scale = made.code, made.scale.float().numpy()
    error = (w - made.matrix()).square().numpy()
    ordered = w[:, made.order].numpy()
    for d in range(4):
        best = np.inf
        for path in itertools.product(range(1 << bits), repeat=d + 1):
            window, total = 0, 0.0
            for i, symbol in enumerate(path):
                window = ((window << bits) | symbol) & ((1 << code.window) - 1)
                total += float((ordered[i, d - i] - code.levels[window] * scale[i]) ** 2) * scale[i] ** 0
            best = min(best, total)
        found = sum(error[i, int(made.order[d - i])] for i in range(d + 1))
        assert found == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_loss_is_as_predicted(bits: int) -> None:
    m, n = 96, 160
    w, c_in, c_out = weights(m, n), metric(n, 1), metric(m, 2)
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)
    made = round_trellis(w, inputs, outputs, bits)
    loss = quadratic(w - made.matrix(), c_in, c_out)
    # With one bit the feedback itself outgrows the code's range.
    assert loss == pytest.approx(predicted_loss(w, inputs, outputs, bits), rel=0.5 if bits == 1 else 0.15)
    sampled = quadratic(sampled_error(w, inputs, outputs, bits, seed=0), c_in, c_out)
    assert loss == pytest.approx(sampled, rel=0.5 if bits == 1 else 0.2)


@pytest.mark.parametrize("bits", TRELLIS_BITS)
def test_an_outlier_at_a_massive_input_gets_its_level(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight of thirty times the others' size meets an input of thirty times theirs: out there the levels are far
    apart, and that one error is most of the loss unless the row's scale is made for it."""
    m, n = 96, 160
    w, c_in, c_out = weights(m, n), metric(n, 1), metric(m, 2)
    w[17, 40] = 30 * w[17].abs().mean()
    c_in[40] *= 30
    c_in[:, 40] *= 30
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)

    def loss() -> float:
        return quadratic(w - round_trellis(w, inputs, outputs, bits).matrix(), c_in, c_out)

    fitted = loss()
    monkeypatch.setattr(trellis, "FITTINGS", 0)
    assert fitted <= (0.8 if bits > 2 else 1.0) * loss()


@pytest.mark.parametrize("bits", [1, 2])
def test_scales_expect_what_the_feedback_adds(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steep metrics and uneven rows: scales made for the weights alone clip, and the feedback passes that on."""
    m, n = 96, 160
    c_in, c_out = metric(n, 1, power=2.0), metric(m, 2, power=2.0)
    shuffled = torch.randperm(m, generator=torch.Generator().manual_seed(3))
    w = weights(m, n) * torch.logspace(-0.5, 0.5, m)[shuffled, None]
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)

    def loss() -> float:
        return quadratic(w - round_trellis(w, inputs, outputs, bits).matrix(), c_in, c_out)

    expecting = loss()
    assert predicted_loss(w, inputs, outputs, bits) / expecting == pytest.approx(1.4, rel=0.2)
    monkeypatch.setattr(trellis, "PUSHES", 0)
    assert expecting < 0.85 * loss()


def test_target_power_is_that_of_random_errors() -> None:
    """W + η - E with independent η of the code's noise, drawn many times."""
    m, n = 24, 32
    w = weights(m, n)
    inputs, outputs = InputFactor.of(torch.eye(n, dtype=torch.float64)), unit_factor(metric(m, 2))
    code = trellis_code(2)
    power = target_power(w, inputs, outputs, code)
    eta = torch.randn(4000, m, generator=torch.Generator().manual_seed(0)).double() * (code.noise * power).sqrt()
    error = torch.linalg.solve_triangular(outputs.upper.double().T, eta.T, upper=False, unitriangular=True).T
    drawn = (w.double().square().mean(1)) + (eta - error).square().mean(0)
    torch.testing.assert_close(power, drawn, rtol=0.1, atol=0.0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_and_code_beat_rounding_to_nearest(bits: int) -> None:
    """Against the best of many uniform grids of as many bits, rounded to nearest: by far more than the code alone."""
    m, n = 96, 160
    w, c_in, c_out = weights(m, n), metric(n, 1), metric(m, 2)
    made = round_trellis(w, InputFactor.of(c_in), unit_factor(c_out), bits)
    half = 2 ** (bits - 1)
    grids = []
    for step in torch.linspace(0.05, 2.0, 80).tolist():
        grid = ((w / step - 0.5).round().clamp(-half, half - 1) + 0.5) * step
        grids.append(quadratic(w - grid, c_in, c_out))
    assert quadratic(w - made.matrix(), c_in, c_out) < 0.5 * min(grids)


def test_padded_columns_and_rank_deficient_metrics() -> None:
    w = weights(24, 20)
    low = weights(20, 3, seed=5).double()
    made = round_trellis(w, InputFactor.of(low @ low.T), unit_factor(torch.zeros(24, 24)), 4)
    assert made.symbols.shape == (24, 32) and made.matrix().shape == (24, 32)
    assert sorted(made.order.tolist()) == list(range(32))
    assert torch.isfinite(made.matrix()).all()
    relative = (w - made.matrix()[:, :20]).square().mean() / w.square().mean()
    assert relative < 0.5


def test_wide_scales_reach_outliers() -> None:
    w = weights(4, 4096)
    w[1, 7] = 40.0
    code = trellis_code(6)
    scale, noise = row_scale(w, InputFactor.of(torch.eye(4096)), torch.ones(4), code)
    assert float(scale[1]) > 1.5 * float(scale[0])
    assert float(noise[1]) < 1600 / 4096


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_are_refused(value: float) -> None:
    w = weights(8, 16)
    w[3, 5] = value
    with pytest.raises(Failure):
        round_trellis(w, InputFactor.of(metric(16, 0)), unit_factor(metric(8, 0)), 3)
    with pytest.raises(Failure):
        unit_factor(torch.full((4, 4), value))


def test_factors_multiply_to_the_damped_metric() -> None:
    c = metric(12, 3)
    f = unit_factor(c, 1e-2)
    damped = c + 1e-2 * c.diagonal().mean() * torch.eye(12)
    upper = f.upper.double()
    torch.testing.assert_close((upper * f.weight) @ upper.T, damped, rtol=1e-5, atol=1e-7)
    assert torch.equal(upper, upper.triu()) and (f.plain <= f.weight).all()


def test_tables_spend_bits_where_text_does() -> None:
    rows, n = 200, 32
    w, use = weights(rows, n), torch.logspace(0, -4, rows, dtype=torch.float64)
    w[:, 5] *= 6
    own = TableMetric.of(w, [(use, metric(n, 1)), (use / 2, metric(n, 2))])
    scaled = own.scaled(w)
    noise = row_noise(scaled, own.inputs)
    price = 0.1 * float((own.weight * noise[3]).mean())
    bits = dealt(own, noise, price)
    groups = groups_of(bits)
    assert len(groups) > 2 and sum(count for _, count in groups) == rows
    again = dealt_as(own, noise, groups)
    assert groups_of(again) == groups
    assert bits[:20].float().mean() > bits[-20:].float().mean() + 1
    made = round_table(scaled, own, again)
    assert torch.equal(torch.cat([where for where, _ in made.values()]).sort().values, torch.arange(rows))

    def loss(found: dict) -> float:
        total = 0.0
        for where, part in found.values():
            e = (w[where] - part.matrix() * own.columns.float()).double()
            both = use[where] * ((e @ metric(n, 1)) * e).sum(1) + use[where] / 2 * ((e @ metric(n, 2)) * e).sum(1)
            total += 0.5 * float(both.sum())
        return total

    size = sum(width * count for width, count in groups)
    even = round_table(scaled, own, torch.full((rows,), -(-size // rows)))
    assert loss(made) < 0.7 * loss(even)
