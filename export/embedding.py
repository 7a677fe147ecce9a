"""Token embedding: rows gathered from the same bytes that a tied head multiplies with, widened after the gather.

GatherBlockQuantized would be folded into an anonymous copy of the whole table when it shares an initializer with
MatMulNBits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import Site
from edge_svd.errors import InputError
from edge_svd.export.graph import FLOAT, Builder
from edge_svd.export.linear import column_scale, dense_matrix, scale_suffix, stored_scale
from edge_svd.formats import SiteFormat, padded


def embedding(builder: Builder, ids: ir.Value, site: Site, fmt: SiteFormat, multiplier: float) -> ir.Value:
    """ids int64 [batch, sequence] → float32 [batch, sequence, hidden]; InputError for factors, which have no rows."""
    if fmt.factored:
        raise InputError(f"The embedding {site.name} cannot be {fmt.kind}; int8, int16 and table are possible.")
    vocab, hidden = site.shape
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
