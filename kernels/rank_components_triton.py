"""`rank_components.gather` as one Triton kernel: a program copies a run of one chosen component."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from edge_svd.kernels.launch import kernel

RUN = 1024


@kernel
def _copy(
    a_ptr: Any,
    b_ptr: Any,
    chosen_ptr: Any,
    to_a_ptr: Any,
    to_b_ptr: Any,
    n: Any,
    m: Any,
    a_row: Any,
    a_column: Any,
    b_row: Any,
    b_column: Any,
    runs_of_a: Any,
    run: tl.constexpr,
) -> None:
    to = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    source = tl.load(chosen_ptr + to).to(tl.int64)
    if part < runs_of_a:
        at = part * run + tl.arange(0, run).to(tl.int64)
        live = at < n
        tl.store(to_a_ptr + to * n + at, tl.load(a_ptr + source * a_row + at * a_column, mask=live), mask=live)
    else:
        at = (part - runs_of_a) * run + tl.arange(0, run).to(tl.int64)
        live = at < m
        tl.store(to_b_ptr + to * m + at, tl.load(b_ptr + source * b_row + at * b_column, mask=live), mask=live)


def gather(a: torch.Tensor, b: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """a [k', n], b [k', m] of the chosen components, arguments checked."""
    n, m = a.shape[1], b.shape[1]
    to_a, to_b = a.new_empty(len(chosen), n), b.new_empty(len(chosen), m)
    runs = triton.cdiv(n, RUN)
    _copy[(len(chosen), runs + triton.cdiv(m, RUN))](
        a, b, chosen.contiguous(), to_a, to_b, n, m, *a.stride(), *b.stride(), runs, run=RUN
    )
    return to_a, to_b
