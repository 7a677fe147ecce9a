"""A decoder of Llama's or GPT-2's kind as one ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import WHOLE, Architecture, Site, sites_of
from edge_svd.errors import InputError
from edge_svd.export.attention import Spans, attention, last_columns, rows_at, spans_of
from edge_svd.export.embedding import embedding, position_rows
from edge_svd.export.graph import CACHES, FLOAT, INT64, MICROSOFT, Builder, Weight, tensor_value
from edge_svd.export.linear import apart, fused_linear, linear
from edge_svd.export.norms import add_and_norm, head_norm, layer_norm, rms_norm
from edge_svd.formats import SiteFormat
from edge_svd.fusing import together
from edge_svd.layouts import HEAD
from edge_svd.runtime.schema import EMBEDDED


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
    cache: str = "float32",
) -> Graph:
    """Logits of every position, or of each row's last unmasked one alone; both graphs read one data file.

    `biases` names sites that add a bias beyond those that the architecture says; `cache` is a kind of KV cache.
    Raises InputError for what GroupQueryAttention's CPU kernel cannot do.
    """
    return _Decoder(architecture, formats, context, every_position, biases, cache).build()


class _Decoder:
    def __init__(
        self,
        architecture: Architecture,
        formats: Mapping[str, SiteFormat],
        context: int,
        every_position: bool,
        biases: frozenset[str],
        cache: str,
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
        self.cache = cache
        self.names = architecture.layout
        self.sites: dict[str, Site] = {site.name: site for site in sites_of(architecture)}
        self.b = Builder()

    def build(self) -> Graph:
        a, b = self.a, self.b
        ids = tensor_value("input_ids", INT64, ("batch", "sequence"))
        mask = tensor_value("attention_mask", INT64, ("batch", "total"))
        positions = tensor_value("position_ids", INT64, ("batch", "sequence"))
        shape = ("batch", a.num_kv_heads, "past", a.head_dim)
        numbers = CACHES[self.cache]
        pasts = [
            (
                tensor_value(f"past_key_values.{n}.key", numbers, shape),
                tensor_value(f"past_key_values.{n}.value", numbers, shape),
            )
            for n in range(a.num_layers)
        ]
        spans = spans_of(b, ids, mask, positions)
        last = None if self.every_position else last_columns(b, ids, mask)
        table = self.names.embedding
        hidden = embedding(b, ids, self.sites[table], self.formats[table], a.embedding_multiplier)
        hidden.name = EMBEDDED
        first = self.before(0, "attention")
        if a.learned_positions:
            rows = position_rows(b, positions, f"{self.names.positions}.weight", (self.context, a.hidden_size))
            hidden, normed = self.added(hidden, rows, first)
        else:
            normed = self.norm(hidden, first) if first else hidden
        presents: list[ir.Value] = []
        for layer in range(a.num_layers):
            hidden, normed, present = self.layer(layer, hidden, normed, pasts[layer], spans, last)
            presents += present
        logits = self.head(normed)
        logits.name, logits.type = "logits", ir.TensorType(FLOAT)
        logits.shape = ir.Shape(("batch", "sequence" if self.every_position else 1, a.vocab_size))
        for value in presents:
            value.type, value.shape = ir.TensorType(numbers), ir.Shape(("batch", a.num_kv_heads, "present", a.head_dim))
        inputs = [ids, mask, positions, *(value for pair in pasts for value in pair)]
        return Graph(b.model(inputs, [logits, *presents]), tuple(b.weights.values()))

    def layer(
        self,
        layer: int,
        hidden: ir.Value,
        normed: ir.Value,
        past: tuple[ir.Value, ir.Value],
        spans: Spans,
        last: ir.Value | None,
    ) -> tuple[ir.Value, ir.Value, list[ir.Value]]:
        """(residual stream, its norm for what comes next, present key and value)."""
        a, b = self.a, self.b
        qkv = self.projections(normed, layer)
        mixed, key, value = attention(b, a, layer, qkv, past, spans, self.context, self.cache)
        if layer == a.num_layers - 1 and last is not None:
            # Only keys and values of the last layer need every position; what follows is wanted at the last one.
            mixed, hidden = rows_at(b, mixed, last), rows_at(b, hidden, last)
        mixed = self.linear(mixed, self.names.part(layer, "o"))
        hidden, normed = self.joined(hidden, mixed, layer, "attention", self.before(layer, "mlp"))
        inner = self.mlp(normed, layer)
        last_layer = layer + 1 == a.num_layers
        following = self.names.final_norm if last_layer else self.before(layer + 1, "attention")
        hidden, normed = self.joined(hidden, inner, layer, "mlp", following)
        return hidden, normed, [key, value]

    def before(self, layer: int, part: str) -> str:
        """The norm that attention or MLP reads; empty where it reads the residual stream itself."""
        return self.names.part(layer, f"before_{part}") if self.a.norms_before else ""

    def joined(self, hidden: ir.Value, x: ir.Value, layer: int, part: str, following: str) -> tuple[ir.Value, ir.Value]:
        """(residual stream with what attention or MLP gave, what comes next reads): `following` names a norm or is
        empty."""
        a, b = self.a, self.b
        if a.norms_after:
            x = self.norm(x, self.names.part(layer, f"after_{part}"))
        if a.residual_multiplier != 1.0:
            x = b.op("Mul", x, b.constant(a.residual_multiplier, np.float32))
        return self.added(hidden, x, following)

    def added(self, hidden: ir.Value, x: ir.Value, following: str) -> tuple[ir.Value, ir.Value]:
        """(hidden + x, its norm): the sum itself where no norm follows."""
        a = self.a
        if following:
            bias = f"{following}.bias" if a.layer_norm else ""
            return add_and_norm(self.b, hidden, x, f"{following}.weight", a.hidden_size, a.norm_eps, bias)
        total = self.b.op("Add", hidden, x)
        return total, total

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """A norm over the whole residual stream."""
        a = self.a
        if a.layer_norm:
            return layer_norm(self.b, x, f"{name}.weight", f"{name}.bias", a.hidden_size, a.norm_eps)
        return rms_norm(self.b, x, f"{name}.weight", a.hidden_size, a.norm_eps)

    def projections(self, normed: ir.Value, layer: int) -> tuple[ir.Value, ...]:
        """Queries, keys and values, each [batch, sequence, heads * head_dim]; side by side as one value where they are
        one product and attention reads them as they are."""
        a = self.a
        if a.fused_qkv:
            qkv: list[ir.Value] = [self.linear(normed, self.names.part(layer, "qkv"))]
        else:
            names = [self.names.part(layer, name) for name in "qkv"]
            whole = len(self.groups(names)) == 1
            qkv = [self.joint(normed, names)] if whole else self.several(normed, names)
        if not a.qk_norm:
            return tuple(qkv)
        if len(qkv) == 1:
            widths = [heads * a.head_dim for heads in (a.num_heads, a.num_kv_heads, a.num_kv_heads)]
            qkv = apart(self.b, qkv[0], widths)
        q, k, v = qkv
        q = self.head_norm(q, self.names.part(layer, "q_norm"), a.num_heads)
        k = self.head_norm(k, self.names.part(layer, "k_norm"), a.num_kv_heads)
        return q, k, v

    def head_norm(self, x: ir.Value, name: str, heads: int) -> ir.Value:
        """The norm of queries or keys, over each head or over all of them."""
        a = self.a
        if a.qk_norm == WHOLE:
            return rms_norm(self.b, x, f"{name}.weight", heads * a.head_dim, a.norm_eps)
        return head_norm(self.b, x, f"{name}.weight", heads, a.head_dim, a.norm_eps)

    def mlp(self, normed: ir.Value, layer: int) -> ir.Value:
        a, b = self.a, self.b
        down = self.names.part(layer, "down")
        if not a.gated:
            return self.linear(self.activated(self.linear(normed, self.names.part(layer, "up"))), down)
        if a.fused_gate_up:
            both = self.linear(normed, self.names.part(layer, "gate_up"))
            gate, up = apart(b, both, [a.intermediate_size] * 2)
        else:
            gate, up = self.several(normed, [self.names.part(layer, kind) for kind in ("gate", "up")])
        return self.linear(b.op("Mul", self.activated(gate), up), down)

    def activated(self, x: ir.Value) -> ir.Value:
        """The MLP's activation."""
        if self.a.activation == "silu":
            return self.b.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # with alpha 1 this is x * sigmoid(x)
        if self.a.activation == "relu":
            return self.b.op("Relu", x)
        return self.b.op("Gelu", x, approximate="tanh" if self.a.activation == "gelu_tanh" else "none")

    def head(self, normed: ir.Value) -> ir.Value:
        a, b, site = self.a, self.b, self.sites[HEAD]
        if a.head_rotation:
            normed = self.linear(normed, self.names.rotation)
        if a.logit_divisor != 1.0:
            # The head is linear and adds no bias: its input is divided, which is far shorter than its output.
            normed = b.op("Div", normed, b.constant(a.logit_divisor, np.float32))
        logits = self.linear(normed, HEAD, site.tied_to)
        if a.logit_softcap:
            cap = b.constant(a.logit_softcap, np.float32)
            logits = b.op("Mul", b.op("Tanh", b.op("Div", logits, cap)), cap)
        return logits

    def groups(self, names: list[str]) -> list[tuple[Site, ...]]:
        """Matrices that read the same input, divided into products as their formats allow."""
        return together([self.sites[name] for name in names], self.formats, self.biases)

    def several(self, x: ir.Value, names: list[str]) -> list[ir.Value]:
        """The products of matrices that read the same input, as few as their formats allow."""
        found: dict[str, ir.Value] = {}
        for group in self.groups(names):
            own = [site.name for site in group]
            if len(group) == 1:
                found[own[0]] = self.linear(x, own[0])
            else:
                made = apart(self.b, self.joint(x, own), [site.shape[0] for site in group])
                found |= dict(zip(own, made, strict=True))
        return [found[name] for name in names]

    def joint(self, x: ir.Value, names: list[str]) -> ir.Value:
        """The one product of several matrices that make a group."""
        sites = [self.sites[name] for name in names]
        return fused_linear(self.b, x, sites, self.formats, self.biased(sites[0]))

    def linear(self, x: ir.Value, name: str, matrix: str = "") -> ir.Value:
        site = self.sites[name]
        return linear(self.b, x, site, self.formats[matrix or name], matrix, bias=self.biased(site))

    def biased(self, site: Site) -> bool:
        """Whether a matrix adds a bias."""
        return site.bias or site.name in self.biases
