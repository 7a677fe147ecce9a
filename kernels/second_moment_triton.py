"""The second moment as one Triton kernel: only tiles on and above the diagonal are computed."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edge_svd.kernels.dispatch import interpreted
from edge_svd.kernels.launch import kernel
from edge_svd.kernels.layout import UpperLayout

# Powers of two, as tl.dot asks. A 64 x 64 fp32 accumulator fits the registers of four warps on every card since Volta.
TILE = 64
TOKENS = 32


@kernel
def _kernel(
    x_ptr: Any,
    weight_ptr: Any,
    mask_ptr: Any,
    out_ptr: Any,
    tokens: Any,
    n: Any,
    block: Any,
    stride_token: Any,
    stride_feature: Any,
    has_weight: tl.constexpr,
    has_mask: tl.constexpr,
    widen: tl.constexpr,
    tile: tl.constexpr,
    step: tl.constexpr,
) -> None:
    row_tile = tl.program_id(0)
    column_tile = tl.program_id(1)
    if column_tile < row_tile:
        return
    rows = row_tile * tile + tl.arange(0, tile)
    columns = column_tile * tile + tl.arange(0, tile)
    total = tl.zeros((tile, tile), dtype=tl.float32)
    for first in range(0, tokens, step):
        t = first + tl.arange(0, step)
        live = t < tokens
        if has_mask:
            live = live & (tl.load(mask_ptr + t, mask=live, other=0) != 0)
        line = x_ptr + t.to(tl.int64) * stride_token
        left = tl.load(
            line[None, :] + rows[:, None] * stride_feature, mask=live[None, :] & (rows[:, None] < n), other=0.0
        )
        right = tl.load(
            line[:, None] + columns[None, :] * stride_feature, mask=live[:, None] & (columns[None, :] < n), other=0.0
        )
        if widen:
            left = left.to(tl.float32)
            right = right.to(tl.float32)
        if has_weight:
            root = tl.sqrt(tl.load(weight_ptr + t, mask=live, other=0.0).to(tl.float32))
            left = left.to(tl.float32) * root[None, :]
            right = right.to(tl.float32) * root[:, None]
        # "ieee" keeps fp32 inputs from being cut to tf32; products of 16-bit inputs are exact in fp32 either way.
        total = tl.dot(left, right, acc=total, input_precision="ieee")
    # A tile may straddle strips, so every row finds its own strip; the address is UpperLayout.offset in closed form.
    strip = (rows // block).to(tl.int64)
    start = strip * block
    base = block * (strip * n - block * ((strip * (strip - 1)) // 2)) + (rows - start) * (n - start) - start
    stored = (rows[:, None] < n) & (columns[None, :] < n) & (columns[None, :] >= start[:, None])
    target = out_ptr + base[:, None] + columns[None, :]
    tl.store(target, tl.load(target, mask=stored, other=0.0) + total, mask=stored)


def accumulate(
    buffer: torch.Tensor,
    layout: UpperLayout,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """`second_moment.reference` on a CUDA card, or anywhere under TRITON_INTERPRET=1; same arguments, same meaning.

    No atomics: each element has one owner and one order of summation, so the same inputs give the same bits.
    """
    x = x.detach()
    tiles = triton.cdiv(layout.n, TILE)
    _kernel[(tiles, tiles)](
        x,
        x if weight is None else weight.detach().to(torch.float32).contiguous(),
        x if mask is None else mask.to(torch.int8).contiguous(),
        buffer,
        x.shape[0],
        layout.n,
        layout.block,
        x.stride(0),
        x.stride(1),
        has_weight=weight is not None,
        has_mask=mask is not None,
        # Triton's interpreter multiplies the bit patterns of bfloat16, so there the product is taken in fp32.
        widen=interpreted(),
        tile=TILE,
        step=TOKENS,
    )
