"""RMS norms, alone and fused with the residual addition before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_svd.export.graph import MICROSOFT, Builder


def rms_norm(builder: Builder, x: ir.Value, name: str, width: int, eps: float) -> ir.Value:
    """x / sqrt(mean(x²) + eps) * weight over the last axis."""
    weight = builder.plain(name, width)
    return builder.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)


def add_and_norm(
    builder: Builder, residual: ir.Value, x: ir.Value, name: str, width: int, eps: float
) -> tuple[ir.Value, ir.Value]:
    """(residual + x, its norm), in one operator."""
    weight = builder.plain(name, width)
    normed, _, _, total = builder.node(
        "SkipSimplifiedLayerNormalization",
        [residual, x, weight],
        domain=MICROSOFT,
        outputs=[f"{name}.normed", "", "", f"{name}.total"],
        epsilon=eps,
    )
    return total, normed


def head_norm(builder: Builder, x: ir.Value, name: str, heads: int, head_dim: int, eps: float) -> ir.Value:
    """The norm of each head of x [batch, sequence, heads * head_dim] for itself."""
    split = builder.op("Reshape", x, builder.constant([0, -1, head_dim], np.int64))
    normed = rms_norm(builder, split, name, head_dim, eps)
    return builder.op("Reshape", normed, builder.constant([0, -1, heads * head_dim], np.int64))
