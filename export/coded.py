"""Trellis-coded matrices in the graph: one model-local function a number of bits turns planes into int8 rows.

All of it works on initializers alone, so that onnxruntime does it while it loads the model (function inlining, then
constant folding) and any runtime that loads the graph gets the same int8 matrices.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from edge_svd.export.graph import DOMAIN, INT32, UINT8, UINT16, UINT32, Builder, FunctionBuilder
from edge_svd.formats import MOST_PIVOTED, PLANES, SiteFormat, padded
from edge_svd.trellis_code import trellis_code


def coded_matrix(builder: Builder, name: str, shape: tuple[int, int], fmt: SiteFormat) -> ir.Value:
    """uint8 [m, padded n], level + 128, of a trellis-coded matrix or table."""
    m, n = shape[0], padded(shape[1])
    groups = fmt.rows or ((fmt.bits, m),)
    made = []
    for bits, count in groups:
        prefix = f"g{bits}" if fmt.rows else ""
        planes = [stored(builder, f"{name}.{prefix}p{width}", UINT8, (count, n * width // 8)) for width in PLANES[bits]]
        made.append(builder.shared(builder.function(f"Unpack{bits}", partial(unpacker, bits)), *planes, domain=DOMAIN))
    whole = made[0] if len(made) == 1 else builder.shared("Concat", *made, axis=0)
    order = builder.shared("Cast", stored(builder, f"{name}.order", UINT16, (n,)), to=int(INT32))
    whole = builder.shared("Gather", whole, order, axis=1)
    if not fmt.rows:
        return whole
    index = UINT16 if m <= MOST_PIVOTED else UINT32
    place = builder.shared("Cast", stored(builder, f"{name}.place", index, (m,)), to=int(INT32))
    return builder.shared("Gather", whole, place, axis=0)


def stored(builder: Builder, tensor: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """A checkpoint tensor that goes into the data file as it is."""
    return builder.weight(tensor, dtype, shape, lambda read: iter([read(tensor)]))


def unpacker(bits: int) -> FunctionBuilder:
    """Planes uint8 [m, n · width / 8] → uint8 [m, n] in rounding order."""
    code = trellis_code(bits)
    f = FunctionBuilder([f"p{width}" for width in PLANES[bits]])
    symbols, shift = None, 0
    for plane, width in zip(f.inputs, PLANES[bits], strict=True):
        count = 8 // width
        spread = f.op("Unsqueeze", plane, f.constant([1], np.int64))
        shifts = f.constant(np.arange(count).reshape(1, count, 1) * width, np.uint8)
        part = f.op(
            "BitwiseAnd", f.op("BitShift", spread, shifts, direction="RIGHT"), f.constant(2**width - 1, np.uint8)
        )
        part = f.op("Reshape", part, f.constant([0, -1], np.int64))
        if symbols is None:
            symbols = part
        else:
            moved = f.op("BitShift", part, f.constant(shift, np.uint8), direction="LEFT")
            symbols = f.op("BitwiseOr", symbols, moved)
        shift += width
    assert symbols is not None
    window = f.op("Cast", symbols, to=int(INT32))
    full = window
    for back in range(1, code.memory + 1):
        start, end = f.constant([0, back], np.int64), f.constant([-back, 2**31], np.int64)
        earlier = f.op("Pad", window, f.constant([back, 0, 0, back], np.int64))
        earlier = f.op("Slice", earlier, start, end)
        full = f.op("Add", full, f.op("Mul", earlier, f.constant(1 << (bits * back), np.int32)))
    if bits * (code.memory + 1) > code.window:
        full = f.op("BitwiseAnd", full, f.constant((1 << code.window) - 1, np.int32))
    levels = f.constant(code.levels.astype(np.int16) + 128, np.uint8)
    f.outputs = [f.op("Gather", levels, full, axis=0)]
    return f
