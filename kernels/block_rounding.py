"""Blocks of 2, 4 or 8 bits a weight: scales by search, and the nearest integers with what each row loses by them.

The search tries SHRINKS shares of a block's range in registers; in plain torch each of them reads and writes the matrix
several times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton, require, require_together
from edge_svd.kernels.row_rounding import bfloat16_at_least
from edge_svd.runtime.errors import InputError

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.6, 0.5)
"""Shares of the range that covers a whole block, tried for its scale: clipping a few large weights pays."""

STEPS = 255
"""A block's scale is row · code / STEPS."""


@dataclass(frozen=True)
class BlockGrid:
    """Of W [m, n] in blocks: row bfloat16 [m]; code uint8 [m, blocks] ≥ 1, the scale of a block is row · code / 255;
    zero uint8 [m, blocks], the integer that stands for 0. Integers are below 2^bits."""

    row: torch.Tensor
    code: torch.Tensor
    zero: torch.Tensor
    bits: int
    block: int

    def scale(self) -> torch.Tensor:
        """fp32 [m, blocks]."""
        return self.code.float() * (self.row.float() / STEPS)[:, None]


def search(w: torch.Tensor, weight: torch.Tensor, bits: int, block: int, zero: bool) -> BlockGrid:
    """The grid of W [m, n], n a multiple of `block`, that loses least under column weights [n] fp32: Σ weight_j e_ij².

    zero: whether a block has a zero point of its own; the middle of the range otherwise.
    A row that holds NaN or infinity has no meaningful grid. InputError on what does not fit.
    """
    require(w, "matrix", (None, None), DTYPES)
    require(weight, "column weights", (w.shape[1],), (torch.float32,))
    require_together(w, weights=weight)
    _check(w, bits, block)
    m, n = w.shape
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    blocks = w.float().reshape(m, n // block, block)
    low, high = blocks.amin(2).clamp_max(0), blocks.amax(2).clamp_min(0)
    full = (high - low) / top if zero else torch.maximum(high / (top - middle), -low / middle)
    row = bfloat16_at_least(full.amax(1))
    if by_triton(w):
        from edge_svd.kernels import block_rounding_triton

        code, centre = block_rounding_triton.search(w, weight, low, full, row, (SHRINKS, STEPS), bits, block, zero)
        return BlockGrid(row, code, centre, bits, block)
    g = weight.reshape(1, n // block, block)
    best = torch.full_like(full, torch.inf)
    code, chosen = torch.ones_like(full), torch.full_like(full, middle)
    for shrink in SHRINKS:
        tried = (full * (shrink * STEPS) / row.float()[:, None]).round().clamp(1, STEPS)
        step = tried * (row.float() / STEPS)[:, None]
        centre = (-low * shrink / step).round().clamp(0, top) if zero else chosen
        q = ((blocks / step[..., None]).round() + centre[..., None]).clamp(0, top)
        loss = (((q - centre[..., None]) * step[..., None] - blocks).square() * g).sum(2)
        better = loss < best
        best = torch.where(better, loss, best)
        code = torch.where(better, tried, code)
        chosen = torch.where(better, centre, chosen) if zero else chosen
    return BlockGrid(row, code.to(torch.uint8), chosen.to(torch.uint8), bits, block)


def nearest(
    w: torch.Tensor, grid: BlockGrid, gradient: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """W [m, n] to the nearest point of its grid: uint8 [m, n], and Σ_j G_ij (ŵ_ij − w_ij) fp32 [m] where the gradient
    ∂L/∂W fp32 [m, n] is given. A NaN in a row makes that sum NaN. InputError on what does not fit."""
    require(w, "matrix", (None, None), DTYPES)
    _check(w, grid.bits, grid.block)
    require(grid.code, "codes of the grid", (len(w), w.shape[1] // grid.block), (torch.uint8,))
    if gradient is not None:
        require(gradient, "gradient", tuple(w.shape), (torch.float32,))
    require_together(w, grid=grid.code, gradient=gradient)
    if by_triton(w):
        from edge_svd.kernels import block_rounding_triton

        return block_rounding_triton.nearest(w, grid.scale(), grid.zero, grid.bits, grid.block, gradient)
    scale, zero = (part.repeat_interleave(grid.block, 1) for part in (grid.scale(), grid.zero.float()))
    q = ((w.float() / scale).round() + zero).clamp(0, 2**grid.bits - 1)
    change = None if gradient is None else (gradient * ((q - zero) * scale - w.float())).sum(1)
    return q.nan_to_num(0.0).to(torch.uint8), change


def _check(w: torch.Tensor, bits: int, block: int) -> None:
    if bits not in (2, 4, 8):
        raise InputError(f"Blocks hold 2, 4 or 8 bits a weight, not {bits}.")
    if block < 1 or block & (block - 1) or w.shape[1] % block:
        raise InputError(f"Blocks of {block} do not divide rows of {w.shape[1]} weights, or are no power of two.")
