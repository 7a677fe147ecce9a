"""Integers of a checkpoint as the unsigned bytes that MatMulNBits reads, in pieces of a few megabytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from edge_svd.export.graph import Array, Reader

PIECE = 1 << 22
"""Elements taken at a time, so that a large embedding is never held twice."""


def bytes8(values: Array) -> Array:
    """int8 → value + 128 as uint8 (flipping the sign bit adds 128)."""
    return np.ascontiguousarray(values).view(np.uint8) ^ np.uint8(0x80)


def planes16(values: Array) -> tuple[Array, Array]:
    """int16 v → (hi + 128, lo + 128) as uint8 with v = 256 hi + lo and lo in [-128, 127]."""
    high = (values.astype(np.int32) + 128) >> 8
    low = values.astype(np.int32) - 256 * high
    return (high + 128).astype(np.uint8), (low + 128).astype(np.uint8)


def _pieces(values: Array, width: int = 0) -> Iterator[Array]:
    """Runs of rows, of about PIECE elements if a row has `width` of them."""
    rows = max(1, PIECE // (width or values.shape[1]))
    for start in range(0, values.shape[0], rows):
        yield values[start : start + rows]


def rows8(read: Reader, name: str) -> Iterator[Array]:
    """[m, n] int8 → m rows of n bytes."""
    for piece in _pieces(read(name)):
        yield bytes8(piece)


def inputs8(read: Reader, names: Sequence[str]) -> Iterator[Array]:
    """The int8 rows [m_i, n] of several matrices, rows below rows, as n runs of Σ m_i: all weights of an input."""
    rows = np.concatenate([read(f"{name}.q8") for name in names])
    for piece in _pieces(rows.T):
        yield np.ascontiguousarray(piece)


def rows16(read: Reader, name: str) -> Iterator[Array]:
    """[m, n] int16 → m rows of 2n bytes, the high plane before the low one."""
    for piece in _pieces(read(name)):
        yield np.concatenate(planes16(piece), axis=1)


def stacked16(read: Reader, name: str) -> Iterator[Array]:
    """[k, n] int16 → the k rows of the high plane, then the k rows of the low one."""
    for plane in (0, 1):
        for piece in _pieces(read(name)):
            yield planes16(piece)[plane]


def columns8_16(read: Reader, name8: str, name16: str) -> Iterator[Array]:
    """[m, k8] int8 and [m, k16] int16 → m rows of k8 + 2 k16 bytes: the int8 part, the high plane, the low plane."""
    narrow, wide = read(name8), read(name16)
    width = narrow.shape[1] + wide.shape[1]
    for left, right in zip(_pieces(narrow, width), _pieces(wide, width), strict=True):
        yield np.concatenate((bytes8(left), *planes16(right)), axis=1)
