"""W ≈ Q + B A: blocks of few bits, and thin int8 factors for the largest part of what they get wrong.

Error feedback leaves errors that are even only once each side's metric is taken apart: in the metric itself a few
directions carry most of them, and a few components cancel those. Q and B A are refined in turn, each on what the other
leaves (Li et al. 2023, "LoftQ", arXiv 2310.08659, Algorithm 1; here in the metric of both sides, with feedback).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from edge_svd.formats import SiteFormat
from edge_svd.quantize.blocks import Blocked, expected_errors, round_blocks
from edge_svd.quantize.components import round_components
from edge_svd.quantize.feedback import UnitFactor
from edge_svd.quantize.trellis import InputFactor

TURNS = 3
"""Roundings of Q; the second and third take another tenth off the loss (rank 16 to 64, SmolLM2)."""

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""B int8 [m, k], A int8 [k, n], scale bfloat16 [k]."""


def product(factors: Factors) -> torch.Tensor:
    """B A, fp32 [m, n]."""
    b, a, scale = factors
    return (b.float() * scale.float()) @ a.float()


def round_corrected(
    w: torch.Tensor,
    inputs: InputFactor,
    outputs: UnitFactor,
    factors_of: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    fmt: SiteFormat,
) -> tuple[Blocked, Factors]:
    """Round W [m, n]; `factors_of` gives the best B [m, r], A [r, n] for an error, components in falling order.

    Raises:
        Failure: W holds a NaN or an Inf.
    """
    base = base_of(fmt)
    made = round_blocks(w, inputs, outputs, base)
    for turn in range(TURNS):
        b, a = factors_of(w - made.matrix())
        factors = round_components(b[:, : fmt.k8], a[: fmt.k8], 8)
        if turn < TURNS - 1:
            made = round_blocks(w - product(factors), inputs, outputs, base)
    return made, factors


def base_of(fmt: SiteFormat) -> SiteFormat:
    """The blocks without the correction."""
    return replace(fmt, kind="blocks", k8=0)


def remaining_shares(
    w: torch.Tensor, inputs: InputFactor, rows: torch.Tensor, base: SiteFormat, out_gain: float
) -> torch.Tensor:
    """[min(m, n) + 1] float64: the predicted loss of blocks `base` that is left behind a correction of each rank.

    Feedback makes errors η that are nearly independent and cost ½ row_i d_j η_ij² each: what k components leave are the
    singular values behind the k largest. rows [m] weigh the outputs.
    """
    weight = inputs.column_weight(w.shape[1])
    error = expected_errors(w, inputs, base, out_gain)
    scaled = error * (rows.sqrt()[:, None] * weight.sqrt()).float()
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    energy = torch.linalg.eigvalsh(gram.double()).clamp_min(0)  # rising: k components take the last k
    return 0.5 * torch.cat([energy.new_zeros(1), energy.cumsum(0)]).flip(0)
