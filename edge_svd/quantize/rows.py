"""Dense matrices rounded row by row to 8- or 16-bit integers (symmetric, one bfloat16 scale per output row)."""

from __future__ import annotations

import torch

from edge_svd.errors import Failure
from edge_svd.formats import INT4_LIMIT, INT8_LIMIT, INT16_LIMIT
from edge_svd.kernels import row_rounding

LIMITS = {4: INT4_LIMIT, 8: INT8_LIMIT, 16: INT16_LIMIT}


def round_rows(w: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round W [m, n] to nearest with a scale per row (`kernels.row_rounding`).

    Returns:
        q: int8 or int16 [m, n], |q| ≤ 127 or 32512.
        scale: bfloat16 [m], W ≈ scale[:, None] * q, error at most scale / 2 an entry.

    Raises:
        Failure: W holds a NaN or an Inf.
    """
    found = row_rounding.round_rows(w.float(), LIMITS[bits])
    if not torch.isfinite(found.scale).all():
        raise Failure("Cannot round a matrix that holds NaN or Inf.")
    return found.q, found.scale


def dequantise_rows(q: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """scale[:, None] * q, [m, n], in `dtype`."""
    return q.to(dtype) * scale.to(dtype)[:, None]
