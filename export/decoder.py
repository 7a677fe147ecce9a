"""A Llama-like decoder as one ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import EMBEDDING, HEAD, Architecture, Site, sites_of
from edge_svd.errors import InputError
from edge_svd.export.attention import Spans, attention, last_columns, rows_at, spans_of
from edge_svd.export.embedding import embedding
from edge_svd.export.graph import CACHE, FLOAT, INT64, MICROSOFT, Builder, Weight, tensor_value
from edge_svd.export.linear import fused_linear, linear
from edge_svd.export.norms import add_and_norm, head_norm, rms_norm
from edge_svd.formats import SiteFormat
from edge_svd.fusing import together


@dataclass(frozen=True)
class Graph:
    """A serialised graph and the tensors it expects in the data file, in their order there."""

    model: bytes
    weights: tuple[Weight, ...]


def decoder(
    architecture: Architecture,
    formats: Mapping[str, SiteFormat],
    *,
    context: int,
    every_position: bool,
    biases: frozenset[str] = frozenset(),
) -> Graph:
    """Logits of every position, or of each row's last unmasked one alone; both graphs read one data file.

    `biases` names sites that add a bias beyond those that the architecture says. Raises InputError for what
    GroupQueryAttention's CPU kernel cannot do.
    """
    return _Decoder(architecture, formats, context, every_position, biases).build()


class _Decoder:
    def __init__(
        self,
        architecture: Architecture,
        formats: Mapping[str, SiteFormat],
        context: int,
        every_position: bool,
        biases: frozenset[str],
    ) -> None:
        if architecture.head_dim % 16 or architecture.rotary_dim % 16:
            raise InputError(
                f"Heads of width {architecture.head_dim} with {architecture.rotary_dim} rotated cannot be exported; "
                "onnxruntime's attention needs multiples of 16."
            )
        self.a = architecture
        self.formats = formats
        self.context = context
        self.every_position = every_position
        self.biases = biases
        self.sites: dict[str, Site] = {site.name: site for site in sites_of(architecture)}
        self.b = Builder()

    def build(self) -> Graph:
        a, b = self.a, self.b
        ids = tensor_value("input_ids", INT64, ("batch", "sequence"))
        mask = tensor_value("attention_mask", INT64, ("batch", "total"))
        positions = tensor_value("position_ids", INT64, ("batch", "sequence"))
        shape = ("batch", a.num_kv_heads, "past", a.head_dim)
        pasts = [
            (
                tensor_value(f"past_key_values.{n}.key", CACHE, shape),
                tensor_value(f"past_key_values.{n}.value", CACHE, shape),
            )
            for n in range(a.num_layers)
        ]
        spans = spans_of(b, ids, mask)
        last = None if self.every_position else last_columns(b, ids, mask)
        hidden = embedding(b, ids, self.sites[EMBEDDING], self.formats[EMBEDDING], a.embedding_multiplier)
        normed = rms_norm(b, hidden, "model.layers.0.input_layernorm.weight", a.hidden_size, a.norm_eps)
        presents: list[ir.Value] = []
        for layer in range(a.num_layers):
            hidden, normed, present = self.layer(layer, hidden, normed, pasts[layer], spans, positions, last)
            presents += present
        logits = self.head(normed)
        logits.name, logits.type = "logits", ir.TensorType(FLOAT)
        logits.shape = ir.Shape(("batch", "sequence" if self.every_position else 1, a.vocab_size))
        for value in presents:
            value.type, value.shape = ir.TensorType(CACHE), ir.Shape(("batch", a.num_kv_heads, "present", a.head_dim))
        inputs = [ids, mask, positions, *(value for pair in pasts for value in pair)]
        return Graph(b.model(inputs, [logits, *presents]), tuple(b.weights.values()))

    def layer(
        self,
        layer: int,
        hidden: ir.Value,
        normed: ir.Value,
        past: tuple[ir.Value, ir.Value],
        spans: Spans,
        positions: ir.Value,
        last: ir.Value | None,
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """(residual stream, its norm for what comes next, present key and value)."""
        a, b, at = self.a, self.b, f"model.layers.{layer}"
        qkv = self.projections(normed, at)
        mixed, key, value = attention(b, a, layer, qkv, past, spans, positions, self.context)
        if layer == a.num_layers - 1 and last is not None:
            # Only keys and values of the last layer need every position; what follows is wanted at the last one.
            mixed, hidden = rows_at(b, mixed, last), rows_at(b, hidden, last)
        mixed = self.linear(mixed, f"{at}.self_attn.o_proj")
        after = f"{at}.post_attention_layernorm.weight"
        before_mlp = after
        if a.sandwich_norms:
            mixed = rms_norm(b, mixed, after, a.hidden_size, a.norm_eps)
            before_mlp = f"{at}.pre_feedforward_layernorm.weight"
        hidden, normed = add_and_norm(b, hidden, mixed, before_mlp, a.hidden_size, a.norm_eps)
        inner = self.mlp(normed, at)
        if a.sandwich_norms:
            inner = rms_norm(b, inner, f"{at}.post_feedforward_layernorm.weight", a.hidden_size, a.norm_eps)
        following = (
            f"model.layers.{layer + 1}.input_layernorm.weight" if layer + 1 < a.num_layers else "model.norm.weight"
        )
        hidden, normed = add_and_norm(b, hidden, inner, following, a.hidden_size, a.norm_eps)
        return hidden, normed, [key, value]

    def projections(self, normed: ir.Value, at: str) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Queries, keys and values, each [batch, sequence, heads * head_dim]."""
        a = self.a
        if a.fused_qkv:
            packed = self.linear(normed, f"{at}.self_attn.qkv_proj")
            widths = self.b.constant(
                [heads * a.head_dim for heads in (a.num_heads, a.num_kv_heads, a.num_kv_heads)], np.int64
            )
            q, k, v = self.b.node("Split", [packed, widths], outputs=3, axis=-1)
        else:
            q, k, v = self.several(normed, [f"{at}.self_attn.{name}_proj" for name in "qkv"])
        if a.qk_norm:
            q = head_norm(self.b, q, f"{at}.self_attn.q_norm.weight", a.num_heads, a.head_dim, a.norm_eps)
            k = head_norm(self.b, k, f"{at}.self_attn.k_norm.weight", a.num_kv_heads, a.head_dim, a.norm_eps)
        return q, k, v

    def mlp(self, normed: ir.Value, at: str) -> ir.Value:
        a, b = self.a, self.b
        if a.fused_gate_up:
            both = self.linear(normed, f"{at}.mlp.gate_up_proj")
            halves = b.constant([a.intermediate_size] * 2, np.int64)
            gate, up = b.node("Split", [both, halves], outputs=2, axis=-1)
        else:
            gate, up = self.several(normed, [f"{at}.mlp.gate_proj", f"{at}.mlp.up_proj"])
        if a.activation == "silu":
            gate = b.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # with alpha 1 this is x * sigmoid(x)
        else:
            gate = b.op("Gelu", gate, approximate="tanh")
        return self.linear(b.op("Mul", gate, up), f"{at}.mlp.down_proj")

    def head(self, normed: ir.Value) -> ir.Value:
        a, b, site = self.a, self.b, self.sites[HEAD]
        logits = self.linear(normed, HEAD, site.tied_to)
        if a.logit_softcap:
            cap = b.constant(a.logit_softcap, np.float32)
            logits = b.op("Mul", b.op("Tanh", b.op("Div", logits, cap)), cap)
        return logits

    def several(self, x: ir.Value, names: list[str]) -> list[ir.Value]:
        """The products of matrices that read the same input, as few as their formats allow."""
        found: dict[str, ir.Value] = {}
        for group in together([self.sites[name] for name in names], self.formats, self.biases):
            if len(group) == 1:
                found[group[0].name] = self.linear(x, group[0].name)
            else:
                made = fused_linear(self.b, x, group, self.formats, self.biased(group[0]))
                found |= dict(zip((site.name for site in group), made, strict=True))
        return [found[name] for name in names]

    def linear(self, x: ir.Value, name: str, matrix: str = "") -> ir.Value:
        site = self.sites[name]
        return linear(self.b, x, site, self.formats[matrix or name], matrix, bias=self.biased(site))

    def biased(self, site: Site) -> bool:
        """Whether a matrix adds a bias."""
        return site.bias or site.name in self.biases
