"""Blocks of few bits: grids, feedback and packing against plain code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding_metrics import metric, weights

from edge_svd.errors import Failure
from edge_svd.formats import BLOCK_BITS, SiteFormat, tensors
from edge_svd.planner.loss import quadratic
from edge_svd.quantize.blocks import (
    choose_grid,
    nearest,
    pack_blocks,
    predicted_loss,
    round_blocks,
    unpack_blocks,
)
from edge_svd.quantize.feedback import unit_factor
from edge_svd.quantize.trellis import InputFactor

M, N = 96, 192
FORMATS = [
    SiteFormat("blocks", bits=bits, block=block, zero=zero)
    for bits in BLOCK_BITS
    for block in (32, 64)
    for zero in (False, True)
] + [SiteFormat("blocks", bits=8, block=16)]


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_loss_is_as_predicted_and_below_nearest(fmt: SiteFormat) -> None:
    w, c_in, c_out = weights(M, N), metric(N, 1), metric(M, 2)
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)
    made = round_blocks(w, inputs, outputs, fmt)
    loss = quadratic(w - made.matrix(), c_in, c_out)
    predicted = predicted_loss(w, inputs, outputs.plain, fmt, outputs.gain)
    assert loss == pytest.approx(predicted, rel=0.5 if fmt.bits == 2 else 0.3)
    even = nearest(w, choose_grid(w, torch.ones(N), fmt))
    assert loss < 0.7 * quadratic(w - even.matrix(), c_in, c_out)
    alone = round_blocks(w, inputs, None, fmt)
    assert quadratic(w - alone.matrix(), c_in, c_out) < quadratic(w - even.matrix(), c_in, c_out)
    assert loss < quadratic(w - alone.matrix(), c_in, c_out)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_feedback_is_the_plain_loop(fmt: SiteFormat) -> None:
    """η = Bᵀ E A, weight by weight: each is rounded with what the earlier errors of its row and column ask for."""
    m, n = 6, fmt.block
    w, c_in, c_out = weights(m, n), metric(n, 1), metric(m, 2)
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)
    made = round_blocks(w, inputs, outputs, fmt)
    a, b = inputs.factor.upper.double().numpy(), outputs.upper.double().numpy()
    order = inputs.order.numpy()
    scale = made.grid.scale().repeat_interleave(fmt.block, 1)[:, order].double().numpy()
    error = (w - made.matrix())[:, order].double().numpy()
    eta = b.T @ error @ a
    top = 2**fmt.bits - 1
    inside = (made.values[:, order] > 0) & (made.values[:, order] < top)
    assert (np.abs(eta[inside.numpy()]) <= 0.5001 * scale[inside.numpy()] + 1e-5).all()
    assert inside.float().mean() > 0.2


@given(st.sampled_from(BLOCK_BITS), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_packing_and_its_inverse(bits: int, m: int, blocks: int, seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**bits, (m, 32 * blocks)).astype(np.uint8))
    packed = pack_blocks(values, bits)
    assert torch.equal(unpack_blocks(packed, bits), values)
    assert tensors((m, 32 * blocks), SiteFormat("blocks", bits=bits, block=32))["q"] == ("uint8", tuple(packed.shape))


def test_massive_inputs_decide_the_scale() -> None:
    """A column that weighs a million times as much must not be clipped for the sake of the others."""
    w = weights(8, 32)
    w[:, 3] *= 6
    c_in = torch.eye(32, dtype=torch.float64)
    c_in[3, 3] = 1e6
    fmt = SiteFormat("blocks", bits=4, block=32)
    inputs = InputFactor.of(c_in)
    grid = choose_grid(w, inputs.column_weight(32), fmt)
    error = (nearest(w, grid).matrix() - w)[:, 3].abs()
    assert (error <= 0.51 * grid.scale()[:, 0]).all()


def test_nan_is_refused() -> None:
    w = weights(4, 32)
    w[0, 0] = float("nan")
    with pytest.raises(Failure):
        round_blocks(w, InputFactor.of(metric(32, 0)), None, SiteFormat("blocks", bits=4, block=32))
