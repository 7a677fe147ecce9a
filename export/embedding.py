"""Token embedding: rows gathered from the same bytes that a tied head multiplies with, widened after the gather.

GatherBlockQuantized would be folded into an anonymous copy of the whole table when it shares an initializer with
MatMulNBits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import Site
from edge_svd.errors import InputError
from edge_svd.export.graph import FLOAT, FLOAT16, Builder
from edge_svd.export.linear import column_scale, dense_matrix, scale_suffix, stored_blocks, stored_scale
from edge_svd.formats import BLOCK_STEPS, SiteFormat, padded


def embedding(builder: Builder, ids: ir.Value, site: Site, fmt: SiteFormat, multiplier: float) -> ir.Value:
    """ids int64 [batch, sequence] → float32 [batch, sequence, hidden]; InputError for factors, which have no rows."""
    if fmt.factored or fmt.kind == "corrected":
        raise InputError(f"The embedding {site.name} cannot be {fmt.kind}; int8, int16, blocks and table are possible.")
    vocab, hidden = site.shape
    if fmt.kind == "blocks":
        return _block_rows(builder, ids, site, fmt, multiplier)
    width = padded(hidden)
    table, _, _ = dense_matrix(builder, site.name, site.shape, fmt)
    scale = builder.op("Gather", stored_scale(builder, site.name, vocab, scale_suffix(fmt)), ids, axis=0)
    scale = builder.op("Cast", scale, to=int(FLOAT))
    rows = builder.op("Cast", builder.op("Gather", table, ids, axis=0), to=int(FLOAT))
    rows = builder.op("Sub", rows, builder.constant(128.0, np.float32))
    if fmt.kind == "int16":
        rows = builder.op("Reshape", rows, builder.constant([0, 0, 2, width], np.int64))
        rows = builder.op("Mul", rows, builder.constant([[256.0], [1.0]], np.float32))
        rows = builder.op("ReduceSum", rows, builder.constant([2], np.int64), keepdims=0)
    else:
        rows = builder.op("Reshape", rows, builder.constant([0, 0, width], np.int64))
    if fmt.kind == "table":
        rows = builder.op("Mul", rows, column_scale(builder, site.name, width))
    if width != hidden:
        rows = builder.op("Slice", rows, *(builder.constant([value], np.int64) for value in (0, hidden, 2)))
    if multiplier != 1.0:
        scale = builder.op("Mul", scale, builder.constant(multiplier, np.float32))
    return builder.op("Mul", rows, scale)


def position_rows(builder: Builder, positions: ir.Value, name: str, shape: tuple[int, int]) -> ir.Value:
    """positions int64 [batch, sequence] → float32 [batch, sequence, hidden]: the rows of a table of learned positions.

    Of the checkpoint's table, the first shape[0] rows are kept, as float16: they are looked up, never multiplied with,
    so the session holds them as the file does. Positions beyond them are refused when the graph runs.
    """
    table = builder.weight(name, FLOAT16, shape, lambda read: iter([read(name)[: shape[0]]]))
    return builder.op("Cast", builder.op("Gather", table, positions, axis=0), to=int(FLOAT))


def _block_rows(builder: Builder, ids: ir.Value, site: Site, fmt: SiteFormat, multiplier: float) -> ir.Value:
    """The same from blocks: the looked-up bytes are split into their values, less the zero points, times the scales."""
    hidden, count = site.shape[1], 8 // fmt.bits
    blocks = hidden // fmt.block
    values, codes, zeros = stored_blocks(builder, [site.name], site.shape, fmt)
    rows = _values(builder, builder.op("Gather", values, ids, axis=0), fmt.bits, [0, 0, blocks, fmt.block])
    if zeros is None:
        centre = builder.constant(2.0 ** (fmt.bits - 1), np.float32)
    else:
        wide = -(-blocks // count) * count
        centre = _values(builder, builder.op("Gather", zeros, ids, axis=0), fmt.bits, [0, 0, wide, 1])
        if wide != blocks:
            centre = builder.op("Slice", centre, *(builder.constant([v], np.int64) for v in (0, blocks, 2)))
    # Scales are gathered before they are widened, so that no fp32 copy of them all is kept for this.
    code = builder.op("Cast", builder.op("Gather", codes, ids, axis=0), to=int(FLOAT))
    row = builder.op(
        "Cast", builder.op("Gather", stored_scale(builder, site.name, site.shape[0], "s8"), ids, axis=0), to=int(FLOAT)
    )
    scale = builder.op("Mul", code, builder.op("Mul", row, builder.constant(multiplier / BLOCK_STEPS, np.float32)))
    scale = builder.op("Reshape", scale, builder.constant([0, 0, blocks, 1], np.int64))
    rows = builder.op("Mul", builder.op("Sub", rows, centre), scale)
    return builder.op("Reshape", rows, builder.constant([0, 0, hidden], np.int64))


def _values(builder: Builder, packed: ir.Value, bits: int, shape: list[int]) -> ir.Value:
    """uint8 [batch, sequence, …] of several values a byte → float32 [batch, sequence, *shape[2:]]."""
    if bits < 8:
        spread = builder.op("Unsqueeze", packed, builder.constant([-1], np.int64))
        shifts = builder.constant(np.arange(8 // bits) * bits, np.uint8)
        parts = builder.op("BitShift", spread, shifts, direction="RIGHT")
        packed = builder.op("BitwiseAnd", parts, builder.constant(2**bits - 1, np.uint8))
    return builder.op("Cast", builder.op("Reshape", packed, builder.constant(shape, np.int64)), to=int(FLOAT))
