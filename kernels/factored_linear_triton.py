"""`factored_linear` as Triton kernels, for few rows and for many.

Few rows: a program takes RANKS components, makes their A x in registers and multiplies that by their columns of B at
once, so the intermediate never leaves the chip; what programs add to y is kept apart and summed in one order by a
second kernel, so the same inputs give the same bits. That costs 4 · rows · m bytes of second-level cache a program.
Many rows: A x of all rows and components goes through memory between two products, as it would cost every tile of
columns of y all of A x to make it anew; int8 components become numbers in registers in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from edge_svd.kernels.dispatch import interpreted
from edge_svd.kernels.launch import kernel
from edge_svd.kernels.rank_components import Components, Part

FEW_ROWS = 16
RANKS = 16  # a program of few rows; tl.dot asks for at least 16 on every side
INPUTS = 128
OUTPUTS = 256
TILE_ROWS, TILE_COLUMNS, TILE_DEPTH = 64, 64, 32
REDUCED = 256


@triton.jit
def _place(chosen_ptr: Any, r: Any, live: Any, has_chosen: tl.constexpr) -> Any:
    """Where the r-th components lie."""
    source = r.to(tl.int64)
    if has_chosen:
        source = tl.load(chosen_ptr + r, mask=live, other=0).to(tl.int64)
    return source


@triton.jit
def _a_x(
    x_ptr: Any,
    a_ptr: Any,
    scale_ptr: Any,
    row: Any,
    rows: Any,
    source: Any,
    live: Any,
    n: Any,
    x_row: Any,
    x_column: Any,
    a_row: Any,
    a_column: Any,
    has_scale: tl.constexpr,
    compute: tl.constexpr,
    height: tl.constexpr,
    width: tl.constexpr,
    depth: tl.constexpr,
) -> Any:
    """A x, scaled, of `height` rows and `width` components, fp32."""
    total = tl.zeros((height, width), dtype=tl.float32)
    for start in range(0, n, depth):
        j = start + tl.arange(0, depth)
        x = tl.load(
            x_ptr + row[:, None] * x_row + j[None, :] * x_column,
            mask=(row[:, None] < rows) & (j[None, :] < n),
            other=0.0,
        )
        a = tl.load(
            a_ptr + source[None, :] * a_row + j[:, None] * a_column, mask=live[None, :] & (j[:, None] < n), other=0
        )
        total = tl.dot(x.to(compute), a.to(compute), acc=total, input_precision="ieee")
    if has_scale:
        total = total * tl.load(scale_ptr + source, mask=live, other=0.0)[None, :]
    return total


@kernel
def _few(
    x_ptr: Any,
    a_ptr: Any,
    b_ptr: Any,
    scale_ptr: Any,
    chosen_ptr: Any,
    partial_ptr: Any,
    rows: Any,
    k: Any,
    n: Any,
    m: Any,
    x_row: Any,
    x_column: Any,
    a_row: Any,
    a_column: Any,
    b_row: Any,
    b_column: Any,
    first_partial: Any,
    has_scale: tl.constexpr,
    has_chosen: tl.constexpr,
    compute: tl.constexpr,
    most_rows: tl.constexpr,
    ranks: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    r = program * ranks + tl.arange(0, ranks)
    live = r < k
    source = _place(chosen_ptr, r, live, has_chosen)
    row = tl.arange(0, most_rows)
    inner = _a_x(
        x_ptr,
        a_ptr,
        scale_ptr,
        row,
        rows,
        source,
        live,
        n,
        x_row,
        x_column,
        a_row,
        a_column,
        has_scale,
        compute,
        most_rows,
        ranks,
        inputs,
    )
    to = (first_partial + program).to(tl.int64) * rows
    for start in range(0, m, outputs):
        i = start + tl.arange(0, outputs)
        b = tl.load(
            b_ptr + source[:, None] * b_row + i[None, :] * b_column, mask=live[:, None] & (i[None, :] < m), other=0
        )
        part = tl.dot(inner.to(compute), b.to(compute), input_precision="ieee")
        tl.store(
            partial_ptr + (to + row[:, None]) * m + i[None, :], part, mask=(row[:, None] < rows) & (i[None, :] < m)
        )


@kernel
def _reduce(
    partial_ptr: Any,
    bias_ptr: Any,
    y_ptr: Any,
    partials: Any,
    size: Any,
    m: Any,
    has_bias: tl.constexpr,
    width: tl.constexpr,
) -> None:
    at = tl.program_id(0).to(tl.int64) * width + tl.arange(0, width)
    live = at < size
    total = tl.zeros((width,), dtype=tl.float32)
    for p in range(partials):
        total += tl.load(partial_ptr + p * size.to(tl.int64) + at, mask=live, other=0.0)
    if has_bias:
        total += tl.load(bias_ptr + at % m, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=live)


@kernel
def _into(
    x_ptr: Any,
    a_ptr: Any,
    scale_ptr: Any,
    chosen_ptr: Any,
    inner_ptr: Any,
    rows: Any,
    k: Any,
    n: Any,
    x_row: Any,
    x_column: Any,
    a_row: Any,
    a_column: Any,
    has_scale: tl.constexpr,
    has_chosen: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    r = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    live = r < k
    source = _place(chosen_ptr, r, live, has_chosen)
    wide = row.to(tl.int64)
    total = _a_x(
        x_ptr,
        a_ptr,
        scale_ptr,
        wide,
        rows,
        source,
        live,
        n,
        x_row,
        x_column,
        a_row,
        a_column,
        has_scale,
        compute,
        tile_rows,
        tile_columns,
        depth,
    )
    tl.store(
        inner_ptr + wide[:, None] * k + r[None, :],
        total.to(inner_ptr.dtype.element_ty),
        mask=(row[:, None] < rows) & live[None, :],
    )


@kernel
def _out_of(
    inner_ptr: Any,
    b_ptr: Any,
    chosen_ptr: Any,
    total_ptr: Any,
    rows: Any,
    k: Any,
    m: Any,
    b_row: Any,
    b_column: Any,
    has_chosen: tl.constexpr,
    first: tl.constexpr,
    compute: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_columns: tl.constexpr,
    depth: tl.constexpr,
) -> None:
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    i = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)
    wide = row.to(tl.int64)
    stored = (row[:, None] < rows) & (i[None, :] < m)
    target = total_ptr + wide[:, None] * m + i[None, :]
    total = tl.zeros((tile_rows, tile_columns), dtype=tl.float32)
    if not first:
        total = tl.load(target, mask=stored, other=0.0)
    for start in range(0, k, depth):
        r = start + tl.arange(0, depth)
        live = r < k
        source = _place(chosen_ptr, r, live, has_chosen)
        inner = tl.load(
            inner_ptr + wide[:, None] * k + r[None, :], mask=(row[:, None] < rows) & live[None, :], other=0.0
        )
        b = tl.load(
            b_ptr + source[:, None] * b_row + i[None, :] * b_column, mask=live[:, None] & (i[None, :] < m), other=0
        )
        total = tl.dot(inner.to(compute), b.to(compute), acc=total, input_precision="ieee")
    tl.store(target, total, mask=stored)


def factored_linear(
    x: torch.Tensor, components: Components, bias: torch.Tensor | None, picks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """As `factored_linear.factored_linear`, arguments checked."""
    run = few if len(x) <= FEW_ROWS else many
    return run(x, components, bias, picks)


def _compute(x: torch.Tensor, part: Part) -> Any:
    """What products are taken in: the common 16-bit dtype where there is one (int8 is exact in either), else fp32.

    Triton's interpreter multiplies the bit patterns of bfloat16, so there it is fp32 always.
    """
    same = x.dtype == part.a.dtype or part.a.dtype == torch.int8
    if interpreted() or not same or x.dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16


def few(
    x: torch.Tensor, components: Components, bias: torch.Tensor | None, picks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """For at most FEW_ROWS rows."""
    (m, n), rows = components.shape, len(x)
    counts = [len(part.a) if pick is None else len(pick) for part, pick in zip(components.parts, picks, strict=True)]
    programs = [triton.cdiv(count, RANKS) for count in counts]
    partial = x.new_empty(sum(programs), rows, m, dtype=torch.float32)
    for number, (part, pick) in enumerate(zip(components.parts, picks, strict=True)):
        _few[(programs[number],)](
            x,
            part.a,
            part.b,
            x if part.scale is None else part.scale,
            x if pick is None else pick.contiguous(),
            partial,
            rows,
            counts[number],
            n,
            m,
            *x.stride(),
            *part.a.stride(),
            *part.b.stride(),
            sum(programs[:number]),
            has_scale=part.scale is not None,
            has_chosen=pick is not None,
            compute=_compute(x, part),
            most_rows=FEW_ROWS,
            ranks=RANKS,
            inputs=INPUTS,
            outputs=OUTPUTS,
        )
    y = x.new_empty(rows, m)
    _reduce[(triton.cdiv(rows * m, REDUCED),)](
        partial,
        x if bias is None else bias.contiguous(),
        y,
        len(partial),
        rows * m,
        m,
        has_bias=bias is not None,
        width=REDUCED,
    )
    return y


def many(
    x: torch.Tensor, components: Components, bias: torch.Tensor | None, picks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """For any number of rows."""
    (m, n), rows = components.shape, len(x)
    total = x.new_empty(rows, m, dtype=torch.float32)
    tiles = {"tile_rows": TILE_ROWS, "tile_columns": TILE_COLUMNS, "depth": TILE_DEPTH}
    for number, (part, pick) in enumerate(zip(components.parts, picks, strict=True)):
        k = len(part.a) if pick is None else len(pick)
        compute, known = _compute(x, part), x if pick is None else pick.contiguous()
        inner = x.new_empty(rows, k)
        _into[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(k, TILE_COLUMNS))](
            x,
            part.a,
            x if part.scale is None else part.scale,
            known,
            inner,
            rows,
            k,
            n,
            *x.stride(),
            *part.a.stride(),
            has_scale=part.scale is not None,
            has_chosen=pick is not None,
            compute=compute,
            **tiles,
        )
        _out_of[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(m, TILE_COLUMNS))](
            inner,
            part.b,
            known,
            total,
            rows,
            k,
            m,
            *part.b.stride(),
            has_chosen=pick is not None,
            first=number == 0,
            compute=compute,
            **tiles,
        )
    return (total if bias is None else total + bias.float()).to(x.dtype)
