"""y = B (A x) + bias from rank components of mixed precision, int8 ones made into numbers only in registers.

A pass of few rows moves k (m + n) numbers of weights, and that is its time; of many, it makes 2 · rows · k (m + n)
operations. In plain torch, int8 components would be written out as floating-point numbers first: 1 byte read, 2 to 4
written and read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton, require, require_together
from edge_svd.kernels.rank_components import Components, Part, check_chosen
from edge_svd.runtime.errors import InputError


def factored_linear(
    x: torch.Tensor,
    components: Components,
    bias: torch.Tensor | None = None,
    chosen: Sequence[torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """x [rows, n] fp32, fp16 or bf16 → y [rows, m] in the same dtype; sums in fp32.

    bias: [m] in whatever floating-point dtype. chosen: of every part the indices int32 or int64 [k'] of the components
    that count, None for all of them; they are read where they lie (`rank_components.gather` copies them together once).
    NaN in a row of x makes that row of y NaN. InputError on what does not fit.
    """
    m, n = components.shape
    require(x, "inputs", (None, n), DTYPES)
    if bias is not None:
        require(bias, "bias", (m,), DTYPES)
    picks: Sequence[torch.Tensor | None] = [None] * len(components.parts) if chosen is None else chosen
    if len(picks) != len(components.parts):
        raise InputError(f"Components of {len(picks)} parts were chosen, and there are {len(components.parts)}.")
    for part, pick in zip(components.parts, picks, strict=True):
        if pick is not None:
            check_chosen(part, pick)
    require_together(x, components=components.parts[0].a, bias=bias)
    if by_triton(x):
        from edge_svd.kernels import factored_linear_triton

        return factored_linear_triton.factored_linear(x, components, bias, picks)
    return reference(x, components, bias, picks)


def reference(
    x: torch.Tensor, components: Components, bias: torch.Tensor | None, picks: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """In plain torch."""
    total = torch.zeros(len(x), components.shape[0], dtype=torch.float32, device=x.device)
    for part, pick in zip(components.parts, picks, strict=True):
        rows = part if pick is None else _picked(part, pick)
        inner = x.float() @ rows.a.float().T
        total += (inner if rows.scale is None else inner * rows.scale) @ rows.b.float()
    return (total if bias is None else total + bias.float()).to(x.dtype)


def _picked(part: Part, pick: torch.Tensor) -> Part:
    scale = None if part.scale is None else part.scale.index_select(0, pick)
    return Part(part.a.index_select(0, pick), part.b.index_select(0, pick), scale)
