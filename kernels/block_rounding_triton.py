"""`block_rounding` as Triton kernels: a program takes some blocks of one row, as a tile [blocks, block]."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edge_svd.kernels.launch import kernel

WEIGHTS = 2048
"""Of a program, about."""


@triton.jit
def _nearest_integer(x: Any) -> Any:
    """To the nearest, ties to even, for |x| < 2²²: fp32 has no digits behind the point at 1.5 · 2²³."""
    limit = 4194303.0
    return (tl.minimum(tl.maximum(x, -limit), limit) + 12582912.0) - 12582912.0


@kernel
def _search(
    w_ptr: Any,
    weight_ptr: Any,
    low_ptr: Any,
    full_ptr: Any,
    row_ptr: Any,
    shrink_ptr: Any,
    code_ptr: Any,
    zero_ptr: Any,
    blocks: Any,
    w_row: Any,
    w_column: Any,
    top: Any,
    steps: Any,
    has_zero: tl.constexpr,
    shrinks: tl.constexpr,
    many: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * many + tl.arange(0, many)
    live = b < blocks
    j = b[:, None] * block + tl.arange(0, block)[None, :]
    here = live[:, None] & (j < blocks * block)
    w = tl.load(w_ptr + row * w_row + j.to(tl.int64) * w_column, mask=here, other=0.0).to(tl.float32)
    g = tl.load(weight_ptr + j, mask=here, other=0.0)
    at = row * blocks + b
    low = tl.load(low_ptr + at, mask=live, other=0.0)
    full = tl.load(full_ptr + at, mask=live, other=0.0)
    whole = tl.zeros((many,), tl.float32) + tl.load(row_ptr + row)
    most = top.to(tl.float32)
    count = tl.zeros((many,), tl.float32) + steps.to(tl.float32)
    middle = (most + 1.0) * 0.5
    best = tl.full((many,), float("inf"), tl.float32)
    code = tl.full((many,), 1.0, tl.float32)
    zero = tl.zeros((many,), tl.float32) + middle
    for i in range(shrinks):
        shrink = tl.load(shrink_ptr + i)
        tried = _nearest_integer(tl.div_rn(full * tl.load(shrink_ptr + shrinks + i), whole))
        tried = tl.minimum(tl.maximum(tried, 1.0), count)
        step = tried * tl.div_rn(whole, count)
        centre = tl.zeros((many,), tl.float32) + middle
        if has_zero:
            centre = _nearest_integer(tl.div_rn(-low * shrink, step))
            centre = tl.minimum(tl.maximum(centre, 0.0), most)
        wide = tl.zeros((many, block), tl.float32) + step[:, None]
        q = _nearest_integer(tl.div_rn(w, wide)) + centre[:, None]
        q = tl.minimum(tl.maximum(q, 0.0), most)
        e = (q - centre[:, None]) * wide - w
        loss = tl.sum(e * e * g, axis=1)
        better = loss < best
        best = tl.where(better, loss, best)
        code = tl.where(better, tried, code)
        zero = tl.where(better, centre, zero)
    tl.store(code_ptr + at, code.to(tl.uint8), mask=live)
    tl.store(zero_ptr + at, zero.to(tl.uint8), mask=live)


@kernel
def _nearest(
    w_ptr: Any,
    scale_ptr: Any,
    zero_ptr: Any,
    gradient_ptr: Any,
    q_ptr: Any,
    change_ptr: Any,
    blocks: Any,
    w_row: Any,
    w_column: Any,
    gradient_row: Any,
    gradient_column: Any,
    top: Any,
    has_gradient: tl.constexpr,
    many: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1) * many + tl.arange(0, many)
    live = b < blocks
    j = b[:, None] * block + tl.arange(0, block)[None, :]
    here = live[:, None] & (j < blocks * block)
    w = tl.load(w_ptr + row * w_row + j.to(tl.int64) * w_column, mask=here, other=0.0).to(tl.float32)
    at = row * blocks + b
    scale = tl.load(scale_ptr + at, mask=live, other=1.0)
    zero = tl.load(zero_ptr + at, mask=live, other=0).to(tl.float32)
    wide = tl.zeros((many, block), tl.float32) + scale[:, None]
    q = _nearest_integer(tl.div_rn(w, wide)) + zero[:, None]
    q = tl.minimum(tl.maximum(q, 0.0), top.to(tl.float32))
    tl.store(q_ptr + row * blocks * block + j, tl.where(w == w, q, 0.0).to(tl.uint8), mask=here)
    if has_gradient:
        place = gradient_ptr + row * gradient_row + j.to(tl.int64) * gradient_column
        change = tl.load(place, mask=here, other=0.0) * ((q - zero[:, None]) * wide - w)
        tl.store(change_ptr + row * tl.num_programs(1) + tl.program_id(1), tl.sum(tl.sum(change, axis=1), axis=0))


def search(
    w: torch.Tensor,
    weight: torch.Tensor,
    low: torch.Tensor,
    full: torch.Tensor,
    row: torch.Tensor,
    tried: tuple[tuple[float, ...], int],
    bits: int,
    block: int,
    zero: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """code and zero, uint8 [m, blocks], given each block's least weight, its covering step and the row's scale."""
    m, blocks = len(w), w.shape[1] // block
    code = torch.empty(m, blocks, dtype=torch.uint8, device=w.device)
    centre = torch.empty_like(code)
    shrinks, steps = tried
    table = torch.tensor([*shrinks, *(shrink * steps for shrink in shrinks)], dtype=torch.float32, device=w.device)
    many = _many(block)
    _search[(m, triton.cdiv(blocks, many))](
        w,
        weight.contiguous(),
        low.contiguous(),
        full.contiguous(),
        row.float(),
        table,
        code,
        centre,
        blocks,
        *w.stride(),
        2**bits - 1,
        steps,
        has_zero=zero,
        shrinks=len(shrinks),
        many=many,
        block=block,
    )
    return code, centre


def nearest(
    w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, block: int, gradient: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As `block_rounding.nearest`, arguments checked."""
    (m, n), blocks, many = w.shape, w.shape[1] // block, _many(block)
    programs = triton.cdiv(blocks, many)
    q = torch.empty(m, n, dtype=torch.uint8, device=w.device)
    change = torch.empty(m, programs, dtype=torch.float32, device=w.device)
    _nearest[(m, programs)](
        w,
        scale.contiguous(),
        zero.contiguous(),
        w if gradient is None else gradient,
        q,
        change,
        blocks,
        *w.stride(),
        *((0, 0) if gradient is None else gradient.stride()),
        2**bits - 1,
        has_gradient=gradient is not None,
        many=many,
        block=block,
    )
    return q, None if gradient is None else change.sum(1)


def _many(block: int) -> int:
    return max(1, WEIGHTS // block)
