"""RMS and layer norms, alone and fused with the residual addition before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_svd.export.graph import MICROSOFT, Builder


def rms_norm(builder: Builder, x: ir.Value, name: str, width: int, eps: float) -> ir.Value:
    """x / sqrt(mean(x²) + eps) * weight over the last axis."""
    weight = builder.plain(name, width)
    return builder.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=eps, stash_type=1)


def layer_norm(builder: Builder, x: ir.Value, weight: str, bias: str, width: int, eps: float) -> ir.Value:
    """(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * weight + bias over the last axis."""
    scale, shift = builder.plain(weight, width), builder.plain(bias, width)
    return builder.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=eps, stash_type=1)


def add_and_norm(
    builder: Builder, residual: ir.Value, x: ir.Value, name: str, width: int, eps: float, bias: str = ""
) -> tuple[ir.Value, ir.Value]:
    """(residual + x, its norm), in one operator; a norm with a bias is a layer norm, one without an RMS norm."""
    tensors = [builder.plain(tensor, width) for tensor in (name, bias) if tensor]
    normed, _, _, total = builder.node(
        "SkipLayerNormalization" if bias else "SkipSimplifiedLayerNormalization",
        [residual, x, *tensors],
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
