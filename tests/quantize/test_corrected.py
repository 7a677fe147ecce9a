"""Blocks with a low-rank correction: what is predicted, what alternating brings, and the smallest numbers."""

from __future__ import annotations

import pytest
import torch
from rounding_metrics import metric, weights

from edge_svd.decompose import Metrics, decompose
from edge_svd.errors import Failure
from edge_svd.formats import SiteFormat, tensors
from edge_svd.planner.loss import quadratic
from edge_svd.quantize.blocks import predicted_loss, round_blocks
from edge_svd.quantize.components import from_low, round_components, to_low
from edge_svd.quantize.corrected import base_of, product, remaining_shares, round_corrected
from edge_svd.quantize.feedback import unit_factor
from edge_svd.quantize.trellis import InputFactor

M, N = 96, 192
FORMATS = [SiteFormat("corrected", rank, bits=bits, block=32, zero=bits == 2) for bits in (2, 4) for rank in (16, 32)]


def rounded(fmt: SiteFormat) -> tuple[float, float, float, float]:
    """Loss with correction, of the blocks alone, of one turn without refinement, and as predicted."""
    w, c_in, c_out = weights(M, N), metric(N, 1), metric(M, 2)
    inputs, outputs = InputFactor.of(c_in), unit_factor(c_out)

    def factors_of(error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = decompose("io-svd")(error, Metrics(c_in, c_out))
        return found.b, found.a

    made, factors = round_corrected(w, inputs, outputs, factors_of, fmt)
    assert made.values.max() < 2**fmt.bits and factors[0].shape == (M, fmt.k8) and factors[1].shape == (fmt.k8, N)
    base = round_blocks(w, inputs, outputs, base_of(fmt))
    b, a = factors_of(w - base.matrix())
    once = w - base.matrix() - (b[:, : fmt.k8] @ a[: fmt.k8]).float()
    return (
        quadratic(w - made.matrix() - product(factors), c_in, c_out),
        quadratic(w - base.matrix(), c_in, c_out),
        quadratic(once, c_in, c_out),
        float(remaining_shares(w, inputs, outputs.plain, base_of(fmt), outputs.gain)[fmt.k8]),
    )


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_correction_takes_what_is_predicted_and_refining_takes_more(fmt: SiteFormat) -> None:
    loss, alone, once, predicted = rounded(fmt)
    assert once < alone
    # The factors are int8, what they are compared with is not: where there is nothing to refine that takes a little.
    assert loss < once if fmt.bits == 2 else loss < 1.01 * once
    # The prediction is without refinement.
    assert once == pytest.approx(predicted, rel=0.5 if fmt.bits == 2 else 0.3)


def test_without_components_nothing_is_taken() -> None:
    w, c_in, c_out = weights(M, N), metric(N, 1), metric(M, 2)
    inputs, outputs, base = InputFactor.of(c_in), unit_factor(c_out), SiteFormat("blocks", bits=4, block=32)
    left = remaining_shares(w, inputs, outputs.plain, base, outputs.gain)
    assert len(left) == min(M, N) + 1 and float(left[-1]) == pytest.approx(0, abs=1e-12)
    assert float(left[0]) == pytest.approx(predicted_loss(w, inputs, outputs.plain, base, outputs.gain), rel=1e-5)
    assert bool((left[1:] <= left[:-1]).all())


def test_nan_is_refused() -> None:
    w = weights(M, N)
    w[3, 5] = torch.nan
    with pytest.raises(Failure, match="NaN"):
        round_corrected(
            w, InputFactor.of(metric(N, 1)), unit_factor(metric(M, 2)), lambda error: (error, error), FORMATS[0]
        )


def test_four_bit_components_are_within_half_a_step_and_survive_the_file() -> None:
    torch.manual_seed(0)
    b, a = torch.randn(40, 32), torch.randn(32, 64)
    b_q, a_q, scale = round_components(b, a, 4)
    assert int(b_q.abs().max()) == 7 and int(a_q.abs().max()) == 7
    column = b.abs().amax(0) / 7
    assert bool(((b_q * column - b).abs() <= column / 2 + 1e-6).all())
    step = scale.float() / column
    assert bool(((a_q * step[:, None] - a).abs() <= step[:, None] / 2 + 1e-6).all())
    assert torch.equal(from_low(to_low(b_q)), b_q) and torch.equal(from_low(to_low(a_q)), a_q)
    stored = tensors((40, 64), SiteFormat("low-rank", k4=32))
    assert stored == {"b4": ("uint8", (40, 16)), "a4": ("uint8", (32, 32)), "s4": ("bfloat16", (32,))}
    assert tuple(to_low(b_q).shape) == (40, 16) and tuple(to_low(a_q).shape) == (32, 32)
