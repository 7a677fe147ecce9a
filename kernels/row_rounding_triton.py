"""`row_rounding` as one Triton kernel: a program a row."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl

from edge_svd.kernels.launch import kernel

WIDTH = 2048


@kernel
def _round(
    w_ptr: Any,
    gradient_ptr: Any,
    q_ptr: Any,
    scale_ptr: Any,
    change_ptr: Any,
    n: Any,
    limit: Any,
    w_row: Any,
    w_column: Any,
    gradient_row: Any,
    gradient_column: Any,
    has_gradient: tl.constexpr,
    width: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((width,), dtype=tl.float32)
    faults = tl.zeros((width,), dtype=tl.float32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        w = tl.load(w_ptr + row * w_row + j.to(tl.int64) * w_column, mask=j < n, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(w))
        faults += w * 0.0  # NaN where w is NaN or infinite, which a maximum may hide
    smallest = tl.div_rn(tl.max(largest, axis=0), limit.to(tl.float32))
    bits = ((smallest.to(tl.int32, bitcast=True) + 0xFFFF) >> 16) << 16
    scale = tl.where(bits == 0, 1.0, bits.to(tl.float32, bitcast=True)) + tl.sum(faults, axis=0)
    tl.store(scale_ptr + row, scale)
    change = tl.zeros((width,), dtype=tl.float32)
    for start in range(0, n, width):
        j = start + tl.arange(0, width)
        live = j < n
        w = tl.load(w_ptr + row * w_row + j.to(tl.int64) * w_column, mask=live, other=0.0).to(tl.float32)
        # To the nearest, ties to even: fp32 has no digits behind the point at 1.5 · 2²³.
        q = (tl.div_rn(w, tl.zeros((width,), tl.float32) + scale) + 12582912.0) - 12582912.0
        q = tl.where(q == q, tl.minimum(tl.maximum(q, -limit.to(tl.float32)), limit.to(tl.float32)), 0.0)
        tl.store(q_ptr + row * n + j, q.to(q_ptr.dtype.element_ty), mask=live)
        if has_gradient:
            at = gradient_ptr + row * gradient_row + j.to(tl.int64) * gradient_column
            change += tl.load(at, mask=live, other=0.0) * (q * scale - w)
    if has_gradient:
        tl.store(change_ptr + row, tl.sum(change, axis=0))


def round_rows(
    w: torch.Tensor, limit: int, dtype: torch.dtype, gradient: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """As `row_rounding.round_rows`, arguments checked: q, scale and change."""
    m, n = w.shape
    q = torch.empty(m, n, dtype=dtype, device=w.device)
    scale = torch.empty(m, dtype=torch.float32, device=w.device)
    change = None if gradient is None else torch.empty_like(scale)
    _round[(m,)](
        w,
        w if gradient is None else gradient,
        q,
        scale,
        scale if change is None else change,
        n,
        limit,
        *w.stride(),
        *((0, 0) if gradient is None else gradient.stride()),
        has_gradient=gradient is not None,
        width=WIDTH,
    )
    return q, scale.to(torch.bfloat16), change  # exact: its last 16 bits are zero
