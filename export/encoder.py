"""A BERT-like encoder as one ONNX graph: last hidden states, and the pooled embedding of length one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import Site
from edge_svd.encoders.architecture import POSITIONS, TOKEN_TYPES, WORDS, Encoder
from edge_svd.export.decoder import Graph
from edge_svd.export.embedding import embedding
from edge_svd.export.graph import BFLOAT16, FLOAT, INT32, INT64, MICROSOFT, UINT8, Builder, tensor_value
from edge_svd.export.linear import apart, fused_linear, linear
from edge_svd.export.planes import rows8
from edge_svd.formats import SiteFormat
from edge_svd.fusing import together

MASKED = -1e9
"""Added to the scores of padded keys: finite, so that a row of padding alone gives numbers and not NaN."""

SHORTEST = 1e-12
"""Embeddings are divided by their length, or by this where that is less."""


def encoder(architecture: Encoder, formats: Mapping[str, SiteFormat]) -> Graph:
    """input_ids, attention_mask, token_type_ids int64 [batch, sequence] → last_hidden_state and sentence_embedding."""
    return _Encoder(architecture, formats).build()


class _Encoder:
    def __init__(self, architecture: Encoder, formats: Mapping[str, SiteFormat]) -> None:
        self.a = architecture
        self.formats = formats
        self.sites: dict[str, Site] = {site.name: site for site in architecture.sites}
        self.b = Builder("encoder")

    def build(self) -> Graph:
        a, b = self.a, self.b
        inputs = [
            tensor_value(name, INT64, ("batch", "sequence"))
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
        ids, mask, kinds = inputs
        hidden = self.embedded(ids, kinds)
        keys = b.op("Cast", mask, to=int(INT32))
        for layer in range(a.num_layers):
            hidden = self.layer(f"encoder.layer.{layer}", hidden, keys)
        pooled = self.pooled(hidden, mask)
        hidden.name, hidden.shape = "last_hidden_state", ir.Shape(("batch", "sequence", a.hidden_size))
        pooled.name, pooled.shape = "sentence_embedding", ir.Shape(("batch", a.hidden_size))
        hidden.type = pooled.type = ir.TensorType(FLOAT)
        return Graph(b.model(inputs, [hidden, pooled]), tuple(b.weights.values()))

    def embedded(self, ids: ir.Value, kinds: ir.Value) -> ir.Value:
        """Words, positions and token types, added and normed: [batch, sequence, hidden]."""
        a, b = self.a, self.b
        words = embedding(b, ids, self.sites[WORDS], self.formats[WORDS], 1.0)
        zero, sequence = b.constant([0], np.int64), b.op("Shape", ids, start=1, end=2)
        shape = (a.max_position, a.hidden_size)
        rows = b.weight(f"{POSITIONS}.q8", UINT8, shape, lambda read: rows8(read, f"{POSITIONS}.q8"))
        scales = b.weight(
            f"{POSITIONS}.s8", BFLOAT16, (a.max_position, 1), lambda read: iter([read(f"{POSITIONS}.s8")])
        )
        rows, scales = (b.op("Slice", table, zero, sequence, zero) for table in (rows, scales))
        centred = b.op("Sub", b.op("Cast", rows, to=int(FLOAT)), b.constant(128.0, np.float32))
        positions = b.op("Mul", centred, b.op("Cast", scales, to=int(FLOAT)))
        table = b.weight(TOKEN_TYPES, FLOAT, (a.type_vocab_size, a.hidden_size), lambda read: iter([read(TOKEN_TYPES)]))
        total = b.op("Add", b.op("Add", words, b.op("Gather", table, kinds, axis=0)), positions)
        name = "embeddings.LayerNorm"
        vectors = [b.plain(f"{name}.{part}", a.hidden_size) for part in ("weight", "bias")]
        return b.op("LayerNormalization", total, *vectors, axis=-1, epsilon=a.norm_eps)

    def layer(self, at: str, hidden: ir.Value, keys: ir.Value) -> ir.Value:
        a, b = self.a, self.b
        qkv = self.several(hidden, [f"{at}.attention.self.{name}" for name in ("query", "key", "value")])
        mixed = b.op(
            "MultiHeadAttention",
            *qkv,
            None,
            keys,
            domain=MICROSOFT,
            num_heads=a.num_heads,
            mask_filter_value=MASKED,
        )
        mixed = self.linear(mixed, f"{at}.attention.output.dense")
        hidden = self.add_and_norm(hidden, mixed, f"{at}.attention.output.LayerNorm")
        inner = self.linear(hidden, f"{at}.intermediate.dense")
        if a.activation == "relu":
            inner = b.op("Relu", inner)
        else:
            inner = b.op("Gelu", inner, approximate="tanh" if a.activation == "gelu_tanh" else "none")
        return self.add_and_norm(hidden, self.linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")

    def add_and_norm(self, residual: ir.Value, x: ir.Value, name: str) -> ir.Value:
        """The norm of residual + x, in one operator."""
        vectors = [self.b.plain(f"{name}.{part}", self.a.hidden_size) for part in ("weight", "bias")]
        return self.b.op("SkipLayerNormalization", residual, x, *vectors, domain=MICROSOFT, epsilon=self.a.norm_eps)

    def pooled(self, hidden: ir.Value, mask: ir.Value) -> ir.Value:
        """Embeddings [batch, hidden] of length one."""
        b = self.b
        axis = b.constant([1], np.int64)
        if self.a.pooling == "cls":
            found = b.op("Gather", hidden, b.constant(0, np.int64), axis=1)
        else:
            share = b.op("Cast", mask, to=int(FLOAT))
            kept = b.op("Mul", hidden, b.op("Unsqueeze", share, b.constant([2], np.int64)))
            count = b.op("Max", b.op("ReduceSum", share, axis, keepdims=1), b.constant(1.0, np.float32))
            found = b.op("Div", b.op("ReduceSum", kept, axis, keepdims=0), count)
        length = b.op("ReduceL2", found, axis, keepdims=1)
        return b.op("Div", found, b.op("Max", length, b.constant(SHORTEST, np.float32)))

    def several(self, x: ir.Value, names: list[str]) -> list[ir.Value]:
        """The products of matrices that read the same input, as few as their formats allow."""
        found: dict[str, ir.Value] = {}
        for group in together([self.sites[name] for name in names], self.formats):
            if len(group) == 1:
                found[group[0].name] = self.linear(x, group[0].name)
            else:
                joint = fused_linear(self.b, x, group, self.formats, True)
                made = apart(self.b, joint, [site.shape[0] for site in group])
                found |= dict(zip((site.name for site in group), made, strict=True))
        return [found[name] for name in names]

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        return linear(self.b, x, self.sites[name], self.formats[name], bias=True)
