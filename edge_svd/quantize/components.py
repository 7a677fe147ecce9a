"""Rank components rounded to 8 or 16 bits: row r of A and column r of B share one precision and one scale.

The scale of a column of B can be moved into the row of A that feeds it, so a component needs a single stored scale:
b_r a_rᵀ ≈ s_r · b̂_r â_rᵀ with integer b̂_r, â_r.
"""

from __future__ import annotations

import torch

from edge_svd.errors import Failure
from edge_svd.quantize.rows import LIMITS, bfloat16_at_least


def round_components(b: torch.Tensor, a: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round factors B [m, k], A [k, n] component by component.

    Returns:
        b_q [m, k], a_q [k, n] as int8 or int16, and scale bfloat16 [k], with B A ≈ Σ_r scale[r] b_q[:, r] a_q[r, :].

    Raises:
        Failure: a factor holds a NaN or an Inf.
    """
    if not (torch.isfinite(b).all() and torch.isfinite(a).all()):
        raise Failure("Cannot round factors that hold NaN or Inf.")
    limit = LIMITS[bits]
    dtype = torch.int8 if bits == 8 else torch.int16
    column = b.abs().amax(dim=0) / limit
    column = torch.where(column > 0, column, torch.ones_like(column))
    b_q = torch.round(b / column).clamp_(-limit, limit)
    scaled = a * column[:, None]
    scale = bfloat16_at_least(scaled.abs().amax(dim=1) / limit)
    a_q = torch.round(scaled / scale.to(a.dtype)[:, None]).clamp_(-limit, limit)
    return b_q.to(dtype), a_q.to(dtype), scale
