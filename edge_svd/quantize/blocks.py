"""Dense matrices in blocks of few bits, as onnxruntime's MatMulNBits holds them in memory: 2, 4 or 8 bits a weight, a
scale and, if wanted, a zero point a block of inputs.

Scales are kept as a byte a block on a bfloat16 a row. They are chosen by search, errors weighted as the input metric
weighs them once feedback is at work, and the weights are then rounded with two-sided error feedback
(`quantize.feedback`), column by column.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from edge_svd.errors import Failure
from edge_svd.formats import SiteFormat
from edge_svd.kernels import block_rounding
from edge_svd.kernels.block_rounding import BlockGrid, search
from edge_svd.quantize.feedback import UnitFactor
from edge_svd.quantize.trellis import InputFactor


@dataclass(frozen=True)
class Blocked:
    """A rounded matrix: integers uint8 [m, n] below 2^bits and their grid."""

    values: torch.Tensor
    grid: BlockGrid

    def matrix(self) -> torch.Tensor:
        """The rounded matrix, fp32 [m, n]."""
        spread = [part.repeat_interleave(self.grid.block, 1) for part in (self.grid.scale(), self.grid.zero.float())]
        return (self.values.float() - spread[1]) * spread[0]


def choose_grid(w: torch.Tensor, weight: torch.Tensor, fmt: SiteFormat) -> BlockGrid:
    """The grid of W [m, n], n a multiple of the block, under column weights [n] (`kernels.block_rounding.search`).

    Raises:
        Failure: W holds a NaN or an Inf.
    """
    if not torch.isfinite(w).all():
        raise Failure("Cannot round a matrix that holds NaN or Inf.")
    return search(w, weight.float(), fmt.bits, fmt.block, fmt.zero)


def nearest(w: torch.Tensor, grid: BlockGrid) -> Blocked:
    """W [m, n] rounded to the nearest point of its grid."""
    return Blocked(block_rounding.nearest(w, grid)[0], grid)


def round_blocks(w: torch.Tensor, inputs: InputFactor, c_out: UnitFactor | None, fmt: SiteFormat) -> Blocked:
    """Round W [m, n] with error feedback in both metrics, or along the inputs alone without `c_out`."""
    n = w.shape[1]
    grid = choose_grid(w, inputs.column_weight(n), fmt)
    order = inputs.order[inputs.order < n]
    scale = grid.scale().repeat_interleave(fmt.block, 1)[:, order].contiguous().numpy()
    zero = grid.zero.float().repeat_interleave(fmt.block, 1)[:, order].contiguous().numpy()
    ordered = w[:, order].float().contiguous().numpy()
    right = inputs.factor.upper[:n, :n].contiguous().numpy()
    below = c_out.upper.contiguous().numpy() if c_out is not None else np.zeros((0, 0), np.float32)
    rounded, made = np.empty(tuple(w.shape), np.uint8), np.empty(tuple(w.shape), np.uint8)
    _feedback(ordered, right, below, scale, zero, float(2**fmt.bits - 1), rounded)
    made[:, order.numpy()] = rounded
    return Blocked(torch.from_numpy(made), grid)


def expected_errors(w: torch.Tensor, inputs: InputFactor, fmt: SiteFormat, out_gain: float) -> torch.Tensor:
    """η [m, n] as such a rounding makes them, without rounding with feedback.

    What the feedback adds to the weights is taken as random, of the size that errors of rounding to nearest give it:
    grids made for the weights alone clip some of it. `out_gain`: the gain of the metric of the outputs.
    """
    weight = inputs.column_weight(w.shape[1])
    grid = choose_grid(w, weight, fmt)
    nearby = nearest(w, grid).matrix() - w
    power = nearby.square() @ (weight / weight.sum().clamp_min(1e-300)).float()
    added = (max(inputs.factor.gain * out_gain - 1, 0.0) * power).sqrt()
    targets = w + added[:, None] * torch.randn(w.shape, generator=torch.Generator().manual_seed(0))
    return nearest(targets, grid).matrix() - targets


def predicted_loss(
    w: torch.Tensor, inputs: InputFactor, rows: torch.Tensor, fmt: SiteFormat, out_gain: float = 1.0
) -> float:
    """½ Σ row_i d_j η_ij² of such a rounding; rows [m] weigh the outputs."""
    errors = expected_errors(w, inputs, fmt, out_gain)
    return 0.5 * float(rows @ (errors.double().square() @ inputs.column_weight(w.shape[1])))


def pack_blocks(values: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [m, n] → [m, n · bits / 8], the first of a byte's values in its low bits."""
    count = 8 // bits
    parts = values.reshape(values.shape[0], -1, count).to(torch.int32)
    return (parts << (torch.arange(count, dtype=torch.int32) * bits)).sum(2).to(torch.uint8)


def unpack_blocks(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Inverse of `pack_blocks`."""
    shifts = torch.arange(8 // bits, dtype=torch.int32) * bits
    return ((packed.to(torch.int32)[..., None] >> shifts) & (2**bits - 1)).reshape(len(packed), -1).to(torch.uint8)


@numba.njit(fastmath=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _compiled(w: Any, right: Any, below: Any, scale: Any, zero: Any, top: float, result: Any) -> None:
    m, n = w.shape
    two_sided = below.shape[0] > 0
    moved = np.zeros((n, m), np.float32)
    error = np.empty(m, np.float32)
    for j in range(n):
        known = moved[j]
        pushed = np.zeros(m, np.float32)
        for i in range(m):
            target = w[i, j] + known[i] + pushed[i]
            q = min(max(np.round(target / scale[i, j]) + zero[i, j], np.float32(0)), np.float32(top))
            result[i, j] = np.uint8(q)
            e = w[i, j] - (q - zero[i, j]) * scale[i, j]
            error[i] = e
            if two_sided:
                u = e + known[i]
                row = below[i]
                for p in range(i + 1, m):
                    pushed[p] += u * row[p]
        for later in range(j + 1, n):
            share = right[j, later]
            target_row = moved[later]
            for i in range(m):
                target_row[i] += error[i] * share


_LOADING = threading.Lock()


def _feedback(
    w: NDArray[np.float32],
    right: NDArray[np.float32],
    below: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero: NDArray[np.float32],
    top: float,
    result: NDArray[np.uint8],
) -> None:
    """w, scale, zero [m, n] in rounding order; right [n, n] = A; below [m, m] = B or [0, 0]; fills result."""
    if not _compiled.signatures:
        # Many threads may call it, but numba does not load it for many at once.
        with _LOADING:
            none = np.zeros((0, 0), np.float32)
            _compiled(none, none, none, none, none, 1.0, np.zeros((0, 0), np.uint8))
    _compiled(w, right, below, scale, zero, top, result)
