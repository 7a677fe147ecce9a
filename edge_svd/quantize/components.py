"""Rank components rounded to 4, 8 or 16 bits: row r of A and column r of B share one precision and one scale.

The scale of a column of B can be moved into the row of A that feeds it, so a component needs a single stored scale:
b_r a_rᵀ ≈ s_r · b̂_r â_rᵀ with integer b̂_r, â_r.
"""

from __future__ import annotations

import torch

from edge_svd.errors import Failure
from edge_svd.kernels.row_rounding import bfloat16_at_least
from edge_svd.quantize.blocks import pack_blocks, unpack_blocks
from edge_svd.quantize.rows import LIMITS

LOW_MIDDLE = 8
"""What is added to a 4-bit number in the file."""


def round_components(b: torch.Tensor, a: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round factors B [m, k], A [k, n] component by component.

    Returns:
        b_q [m, k], a_q [k, n] as int8 (8 and 4 bits) or int16, and scale bfloat16 [k], with
        B A ≈ Σ_r scale[r] b_q[:, r] a_q[r, :].

    Raises:
        Failure: a factor holds a NaN or an Inf.
    """
    if not (torch.isfinite(b).all() and torch.isfinite(a).all()):
        raise Failure("Cannot round factors that hold NaN or Inf.")
    limit = LIMITS[bits]
    dtype = torch.int16 if bits == 16 else torch.int8
    column = b.abs().amax(dim=0) / limit
    column = torch.where(column > 0, column, torch.ones_like(column))
    b_q = torch.round(b / column).clamp_(-limit, limit)
    scaled = a * column[:, None]
    scale = bfloat16_at_least(scaled.abs().amax(dim=1) / limit)
    a_q = torch.round(scaled / scale.to(a.dtype)[:, None]).clamp_(-limit, limit)
    return b_q.to(dtype), a_q.to(dtype), scale


def to_low(values: torch.Tensor) -> torch.Tensor:
    """int8 [m, n] of at most INT4_LIMIT → uint8 [m, n / 2], two to a byte."""
    return pack_blocks((values + LOW_MIDDLE).to(torch.uint8), 4)


def from_low(packed: torch.Tensor) -> torch.Tensor:
    """Inverse of `to_low`."""
    return unpack_blocks(packed, 4).to(torch.int8) - LOW_MIDDLE
