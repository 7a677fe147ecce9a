"""Trellis-coded matrices unpacked in numpy before onnxruntime sees the graph.

The graph carries model-local functions that do the same, so that every runtime can load it; but onnxruntime's constant
folding keeps all their intermediates, tens of bytes a weight, until the whole graph is folded. Here every call of such
a function is replaced by an initializer whose bytes are handed over when the session is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from edge_svd.runtime.errors import BundleError
from edge_svd.runtime.onnx_external import walk
from edge_svd.runtime.onnx_parts import (
    FUNCTION,
    GRAPH,
    INITIALIZER,
    NODE,
    Node,
    field_bytes,
    given_tensor,
    node_at,
    tagged,
    tensor_at,
    text_at,
)

DOMAIN = "edge_svd"
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
"""Bits of a symbol → widths of the planes that hold it."""

PIECE = 1 << 20
"""Weights unpacked at a time."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def unpacked(graph: bytes, weights: Bytes, name: str) -> tuple[bytes, dict[str, Callable[[], Bytes]]]:
    """(the graph with initializers in place of the calls, what makes the bytes of each); no calls: the graph itself.

    `graph` has passed `check_external_data`, `weights` is the data file. BundleError if calls do not fit.
    """
    outer = list(walk(graph, 0, len(graph)))
    spans = [(value, stop) for field, wire, value, stop in outer if field == GRAPH and wire == 2]
    if len(spans) != 1:
        return graph, {}
    start, end = spans[0]
    calls: dict[str, Node] = {}
    rows: dict[str, tuple[Node, ...]] = {}
    kept: list[bytes] = []
    tensors: dict[str, tuple[int, int]] = {}
    for field, wire, value, stop in walk(graph, start, end):
        if field == NODE and wire == 2:
            call = node_at(graph, value, stop)
            if call.domain == DOMAIN:
                calls[call.outputs[0]] = call
                continue
            distinct = len(set(call.inputs)) == len(call.inputs) > 0
            if call.kind == "Concat" and distinct and all(key in calls for key in call.inputs):
                # Matrices of one product: rows below rows.
                rows[call.outputs[0]] = tuple(calls.pop(key) for key in call.inputs)
                continue
        if field == INITIALIZER and wire == 2:
            tensors[text_at(graph, value, stop, 8)] = value, stop
        kept.append(field_bytes(field, wire, graph, value, stop))
    rows |= {output: (call,) for output, call in calls.items()}
    if not rows:
        return graph, {}
    made: dict[str, Callable[[], Bytes]] = {}
    for output, parts in rows.items():
        with _fitting(output, name):
            inputs = [[tensor_at(graph, *tensors[key]).array(weights) for key in call.inputs] for call in parts]
            shapes = [tuple(int(size) for size in own[-1]) for own in inputs]
            if len({shape[1:] for shape in shapes}) > 1:
                raise ValueError("rows of different widths")
            kept.append(
                tagged(
                    INITIALIZER,
                    given_tensor(output, (sum(shape[0] for shape in shapes), *shapes[0][1:]), np.dtype(np.uint8)),
                )
            )
        made[output] = partial(_made, output, [call.kind for call in parts], inputs, name)
    inner = tagged(GRAPH, b"".join(kept))
    others = [field_bytes(f, w, graph, v, s) for f, w, v, s in outer if f not in (GRAPH, FUNCTION)]
    return b"".join(others) + inner, made


@contextmanager
def _fitting(output: str, name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise BundleError(
            f"In {name}, the packed matrix {output[:80]!r} does not fit its own tensors "
            f"({type(error).__name__}); do not use this bundle."
        ) from None


def _made(output: str, kinds: list[str], inputs: list[list[np.ndarray[Any, Any]]], name: str) -> Bytes:
    with _fitting(output, name):
        parts = [_unpack(kind, own) for kind, own in zip(kinds, inputs, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def groups_of(kind: str) -> tuple[list[int], bool]:
    """Of a function, by its name: bits of its groups of rows, and whether it puts the rows of a table into order."""
    table = kind.startswith("Table")
    return [int(bits) for bits in kind.removeprefix("Table" if table else "Unpack").split("_")], table


def _unpack(kind: str, inputs: list[np.ndarray[Any, Any]]) -> Bytes:
    groups, table = groups_of(kind)
    shape = tuple(int(size) for size in inputs[-1])
    rest = inputs[-3:-1] if table else inputs[-2:-1]
    order = rest[0].astype(np.int64)
    rows, width = shape[0], math.prod(shape[1:])
    if not np.array_equal(np.sort(order), np.arange(width)):
        raise ValueError("columns out of place")
    taken = 0
    result = np.empty((rows, width), np.uint8)
    place = np.arange(rows)
    if table:
        place = np.argsort(rest[1], kind="stable")
        if not np.array_equal(rest[1][place], np.arange(rows)):
            raise ValueError("rows out of place")
    done = 0
    for bits in groups:
        count = len(PLANES[bits])
        planes, levels = inputs[taken : taken + count], inputs[taken + count]
        taken += count + 1
        own = len(planes[0])
        fits = all(plane.shape == (own, width * wide // 8) for plane, wide in zip(planes, PLANES[bits], strict=True))
        if not fits or len(levels) & (len(levels) - 1) or len(levels) < 1 << bits:
            raise ValueError("wrong sizes")
        step = max(1, PIECE // max(width, 1))
        for first in range(0, own, step):
            piece = _levels(bits, planes, levels, first, min(first + step, own))
            result[place[done + first : done + first + len(piece)]] = piece[:, order]
        done += own
    if done != rows or taken + len(rest) + 1 != len(inputs):
        raise ValueError("rows are missing")
    return result.reshape(shape)


def _levels(
    bits: int, planes: list[np.ndarray[Any, Any]], levels: np.ndarray[Any, Any], first: int, last: int
) -> Bytes:
    """Rows first to last of one group, uint8, in rounding order."""
    window = len(levels).bit_length() - 1
    memory = -(-window // bits) - 1
    start = max(0, first - memory)
    symbols: np.ndarray[Any, Any] | None = None
    shift = 0
    for plane, wide in zip(planes, PLANES[bits], strict=True):
        piece, mask = plane[start:last], (1 << wide) - 1
        part = np.concatenate([(piece >> (wide * at)) & mask for at in range(8 // wide)], axis=1)
        symbols = part if symbols is None else symbols | (part << shift)
        shift += wide
    assert symbols is not None
    full = symbols.astype(np.uint16)
    for back in range(1, memory + 1):
        if back < min(symbols.shape):
            full[back:, :-back] |= symbols[:-back, back:].astype(np.uint16) << (bits * back)
    full &= (1 << window) - 1
    return np.take(levels, full[first - start :])
