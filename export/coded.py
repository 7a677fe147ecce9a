"""Trellis-coded matrices in the graph: a model-local function turns planes into the int8 rows that MatMulNBits reads.

All of it works on initializers alone, so that onnxruntime does it while it loads the model (function inlining, then
constant folding) and any runtime that loads the graph gets the same int8 matrices. Our own runtime does the same in
numpy, matrix by matrix, since onnxruntime keeps every intermediate until all folding is done.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from edge_svd.export.graph import DOMAIN, INT32, UINT8, UINT16, UINT32, Builder, FunctionBuilder
from edge_svd.formats import MOST_PIVOTED, PLANES, SiteFormat, padded
from edge_svd.trellis_code import trellis_code


def coded_matrix(builder: Builder, name: str, shape: tuple[int, int], fmt: SiteFormat, block: int) -> ir.Value:
    """uint8 [m, blocks, block], level + 128, of a trellis-coded matrix or table."""
    m, n = shape[0], padded(shape[1])
    groups = fmt.rows or ((fmt.bits, m),)
    inputs = []
    for bits, count in groups:
        prefix = f"g{bits}" if fmt.rows else ""
        for width in PLANES[bits]:
            inputs.append(_stored(builder, f"{name}.{prefix}p{width}", UINT8, (count, n * width // 8)))
        inputs.append(builder.constant(trellis_code(bits).levels.astype(np.int16) + 128, np.uint8))
    inputs.append(_stored(builder, f"{name}.order", UINT16, (n,)))
    if fmt.rows:
        inputs.append(_stored(builder, f"{name}.place", UINT16 if m <= MOST_PIVOTED else UINT32, (m,)))
    inputs.append(builder.constant([m, n // block, block], np.int64))
    widths = tuple(bits for bits, _ in groups)
    kind = ("Table" if fmt.rows else "Unpack") + "_".join(str(bits) for bits in widths)
    return builder.shared(builder.function(kind, partial(unpacker, widths, bool(fmt.rows))), *inputs, domain=DOMAIN)


def _stored(builder: Builder, tensor: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
    """A checkpoint tensor that goes into the data file as it is."""
    return builder.weight(tensor, dtype, shape, lambda read: iter([read(tensor)]))


def unpacker(groups: tuple[int, ...], rows: bool) -> FunctionBuilder:
    """The function of these groups: planes and levels of each, order, (place,) shape → uint8 of that shape."""
    names = [f"g{bits}{part}" for bits in groups for part in (*(f"p{width}" for width in PLANES[bits]), "levels")]
    f = FunctionBuilder([*names, "order", *(["place"] if rows else []), "shape"])
    inputs = iter(f.inputs)
    made = []
    for bits in groups:
        planes = [next(inputs) for _ in PLANES[bits]]
        made.append(_group(f, bits, planes, next(inputs)))
    whole = made[0] if len(made) == 1 else f.op("Concat", *made, axis=0)
    whole = f.op("Gather", whole, f.op("Cast", next(inputs), to=int(INT32)), axis=1)
    if rows:
        whole = f.op("Gather", whole, f.op("Cast", next(inputs), to=int(INT32)), axis=0)
    f.outputs = [f.op("Reshape", whole, next(inputs))]
    return f


def _group(f: FunctionBuilder, bits: int, planes: list[ir.Value], levels: ir.Value) -> ir.Value:
    """Planes uint8 [m, n · width / 8] → uint8 [m, n] in rounding order."""
    code = trellis_code(bits)
    symbols, shift = None, 0
    for plane, width in zip(planes, PLANES[bits], strict=True):
        count = 8 // width
        spread = f.op("Unsqueeze", plane, f.constant([1], np.int64))
        shifts = f.constant(np.arange(count).reshape(1, count, 1) * width, np.uint8)
        part = f.op("BitShift", spread, shifts, direction="RIGHT")
        part = f.op("BitwiseAnd", part, f.constant(2**width - 1, np.uint8))
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
    return f.op("Gather", levels, full, axis=0)
