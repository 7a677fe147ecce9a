"""The few operators that turn stored numbers into rows and scales, in numpy, to the last bit as onnxruntime does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Operator = Callable[[list[Array], Mapping[str, int | str]], Array]

_CASTS: dict[int | str, type] = {1: np.float32, 6: np.int32, 7: np.int64}


def _reshape(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    x, shape = inputs
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def _slice(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    x, starts, ends, axes = inputs
    where = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        where[axis] = slice(int(start), int(end))
    return x[tuple(where)]


def _gather(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    if attributes.get("axis", 0) != 0:
        raise ValueError("not rows")
    return np.take(inputs[0], inputs[1], axis=0)


def _shift(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    if attributes["direction"] != "RIGHT":
        raise ValueError("not to the right")
    return np.right_shift(*inputs)


def _sum(inputs: list[Array], attributes: Mapping[str, int | str]) -> Array:
    total: Array = inputs[0].sum(axis=tuple(int(axis) for axis in inputs[1]), keepdims=bool(attributes["keepdims"]))
    return total


OPERATORS: dict[str, Operator] = {
    "Gather": _gather,
    "Cast": lambda inputs, attributes: inputs[0].astype(_CASTS[attributes["to"]]),
    "Sub": lambda inputs, attributes: inputs[0] - inputs[1],
    "Mul": lambda inputs, attributes: inputs[0] * inputs[1],
    "Div": lambda inputs, attributes: inputs[0] / inputs[1],
    "Reshape": _reshape,
    "Unsqueeze": lambda inputs, attributes: np.expand_dims(inputs[0], tuple(int(axis) for axis in inputs[1])),
    "BitShift": _shift,
    "BitwiseAnd": lambda inputs, attributes: inputs[0] & inputs[1],
    "Slice": _slice,
    "ReduceSum": _sum,
    "Expand": lambda inputs, attributes: np.broadcast_to(
        inputs[0], np.broadcast_shapes(inputs[0].shape, tuple(int(size) for size in inputs[1]))
    ),
    "Concat": lambda inputs, attributes: np.concatenate(inputs, axis=int(attributes["axis"])),
}
"""What embeddings and scales are made of (`export.embedding`, `export.linear`)."""
