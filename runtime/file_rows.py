"""Tables in the data file of which single rows are read, as they lie there or trellis-coded."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_svd.runtime.onnx_parts import Tensor
from edge_svd.runtime.unpack import PLANES, Bytes, groups_of

Array = np.ndarray[Any, Any]
Rows = np.ndarray[Any, np.dtype[np.int64]]


class FileRows:
    """A tensor of the data file."""

    def __init__(self, file: int, tensor: Tensor) -> None:
        """`file` is a descriptor, open for as long as this is used."""
        self.shape = tensor.shape
        self._file, self._tensor = file, tensor
        self._row = tensor.length // max(tensor.shape[0], 1)

    def whole(self) -> Array:
        """All of it."""
        return self._read(0, self.shape[0])

    def take(self, rows: Rows) -> Array:
        """Rows by number, [n] → [n, …]; IndexError outside the table."""
        _check(rows, self.shape[0])
        return np.concatenate([self._read(int(row), 1) for row in rows])

    def _read(self, start: int, count: int) -> Array:
        data = os.pread(self._file, count * self._row, self._tensor.offset + start * self._row)
        if len(data) != count * self._row:
            raise EOFError("the data file ends early")
        return self._tensor.numbers(data).reshape(count, *self.shape[1:])


class CodedTable:
    """What a call of one of the graph's unpacking functions gives: uint8 [m, blocks, block]."""

    def __init__(self, kind: str, inputs: Sequence[FileRows | Array]) -> None:
        """`inputs` are the call's: planes and levels of each group, order, for tables place, shape.

        ValueError or IndexError if they do not fit each other.
        """
        self.shape = tuple(int(size) for size in _all(inputs[-1]))
        self._groups: list[tuple[int, Sequence[FileRows | Array], Bytes]] = []
        taken, (widths, table) = 0, groups_of(kind)
        for bits in widths:
            count = len(PLANES[bits])
            self._groups.append((bits, inputs[taken : taken + count], _all(inputs[taken + count])))
            taken += count + 1
        rows, width = self.shape[0], math.prod(self.shape[1:])
        self._order = _all(inputs[taken]).astype(np.int64)
        self._place = _all(inputs[taken + 1]).astype(np.int64) if table else np.arange(rows)
        for places, count in ((self._order, width), (self._place, rows)):
            if not np.array_equal(np.sort(places), np.arange(count)):
                raise ValueError("rows or columns out of place")
        for bits, planes, levels in self._groups:
            shapes = [(planes[0].shape[0], width * wide // 8) for wide in PLANES[bits]]
            odd = len(levels) & (len(levels) - 1) or len(levels) < 1 << bits
            if odd or [plane.shape for plane in planes] != shapes:
                raise ValueError("wrong sizes")
        if sum(planes[0].shape[0] for _, planes, _ in self._groups) != rows:
            raise ValueError("rows are missing")

    def take(self, rows: Rows) -> Bytes:
        """Rows by number, [n] → uint8 [n, blocks, block]; IndexError outside the table."""
        _check(rows, self.shape[0])
        places = self._place[rows]
        found = np.empty((len(rows), len(self._order)), np.uint8)
        done = 0
        for bits, planes, levels in self._groups:
            count = planes[0].shape[0]
            own = (places >= done) & (places < done + count)
            if own.any():
                found[own] = _levels(bits, planes, levels, places[own] - done, len(self._order))[:, self._order]
            done += count
        return found.reshape(len(rows), *self.shape[1:])


def _levels(bits: int, planes: Sequence[FileRows | Array], levels: Bytes, rows: Rows, width: int) -> Bytes:
    """Rows of one group, uint8 [n, width] in rounding order: each reads the symbols of some rows before it."""
    window = len(levels).bit_length() - 1
    full = np.zeros((len(rows), width), np.uint32)
    for back in range(min(-(-window // bits), width)):
        there = rows >= back
        symbols = _symbols(bits, planes, np.maximum(rows - back, 0)) * there[:, None]
        full[:, : width - back] |= symbols[:, back:] << np.uint32(bits * back)
    return np.take(levels, full & np.uint32((1 << window) - 1))


def _symbols(bits: int, planes: Sequence[FileRows | Array], rows: Rows) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The symbols of rows, [n, width]."""
    parts: list[np.ndarray[Any, np.dtype[np.uint32]]] = []
    shift = np.uint32(0)
    for plane, wide in zip(planes, PLANES[bits], strict=True):
        piece = (plane[rows] if isinstance(plane, np.ndarray) else plane.take(rows)).astype(np.uint32)
        places = [piece >> np.uint32(wide * at) & np.uint32((1 << wide) - 1) for at in range(8 // wide)]
        parts.append(np.concatenate(places, axis=1) << shift)
        shift += np.uint32(wide)
    return np.bitwise_or.reduce(parts)


def _all(item: FileRows | Array) -> Array:
    return item if isinstance(item, np.ndarray) else item.whole()


def _check(rows: Rows, count: int) -> None:
    if not rows.size or not 0 <= rows.min() <= rows.max() < count:
        raise IndexError("a row outside the table")
