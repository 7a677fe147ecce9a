"""Rows rounded to 8- or 16-bit integers under one bfloat16 scale a row, and what each row's rounding loses, together.

A row is read twice, the second time from the cache, and its integers are written: 4 + 1 bytes a weight, and 4 more for
the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton, require, require_together
from edge_svd.runtime.errors import InputError

INTEGERS = {127: torch.int8, 32512: torch.int16}
"""Largest magnitude → the dtype that holds it."""


@dataclass(frozen=True)
class RoundedRows:
    """W ≈ scale[:, None] * q: q int8 or int16 [m, n], scale bfloat16 [m], change fp32 [m].

    change: Σ_j G_ij (ŵ_ij − w_ij), the first-order change of the loss by each row's rounding (IO-SVD's loss-aware
    remapping, arXiv 2605.15626); None without a gradient. A row that holds NaN or infinity has a scale of NaN.
    """

    q: torch.Tensor
    scale: torch.Tensor
    change: torch.Tensor | None


def round_rows(w: torch.Tensor, limit: int, gradient: torch.Tensor | None = None) -> RoundedRows:
    """W [m, n] fp32, fp16 or bf16 to nearest, |q| ≤ limit (127 or 32512); gradient: ∂L/∂W, fp32 [m, n].

    The scale is the smallest bfloat16 with which nothing is clipped. InputError on what does not fit.
    """
    require(w, "matrix", (None, None), DTYPES)
    if limit not in INTEGERS:
        raise InputError(f"Rows are rounded to at most {' or '.join(map(str, INTEGERS))}, not {limit}.")
    if gradient is not None:
        require(gradient, "gradient", tuple(w.shape), (torch.float32,))
    require_together(w, gradient=gradient)
    if by_triton(w):
        from edge_svd.kernels import row_rounding_triton

        return RoundedRows(*row_rounding_triton.round_rows(w, limit, INTEGERS[limit], gradient))
    rows = w.float()
    scale = bfloat16_at_least(rows.abs().amax(dim=1) / limit)
    scale = torch.where(torch.isfinite(rows).all(dim=1), scale, torch.nan)
    q = torch.round(rows / scale.float()[:, None]).nan_to_num_(0.0).clamp_(-limit, limit)
    change = None if gradient is None else (gradient * (q * scale.float()[:, None] - rows)).sum(1)
    return RoundedRows(q.to(INTEGERS[limit]), scale, change)


def bfloat16_at_least(x: torch.Tensor) -> torch.Tensor:
    """The smallest bfloat16 not below each positive fp32 value; zero becomes one, so that a zero row divides safely.

    Rounding up keeps |q| within its limit without clipping; the coarser step costs under 1% of rounding noise and two
    bytes a row instead of four.
    """
    bits = x.float().contiguous().view(torch.int32)
    raised = ((bits + 0xFFFF) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(raised == 0, torch.ones_like(raised), raised)
