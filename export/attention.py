"""Rotary tables and grouped-query attention with past and present in one buffer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_svd.architectures import Architecture, cache_scale
from edge_svd.export.graph import FLOAT, INT32, INT64, MICROSOFT, Builder
from edge_svd.runtime.schema import COLUMNS, KEYS, LAST_KEY, PADDING, PLACES

MASKED = 1e9
"""Subtracted from the scores of masked keys: finite, so that a row of padding alone gives numbers and not NaN."""


@dataclass(frozen=True)
class Spans:
    """What every layer's attention reads from attention_mask.

    Every row counts as full, int32 [batch] last key and int32 [1] keys in all; padding, on either side, is masked by
    the bias float32 [batch, 1, sequence, total]. GroupQueryAttention's own lengths know padding on the right only.

    `places` int64 [batch, sequence] is how far each token is rotated: its position, counted from the first column of
    its row. In the first pass GroupQueryAttention reads one element for the whole batch and counts columns from there;
    from 0, that is the same, since only differences matter and padding on the left shifts all of a row.
    """

    last: ir.Value
    total: ir.Value
    bias: ir.Value
    places: ir.Value


def spans_of(builder: Builder, ids: ir.Value, mask: ir.Value, positions: ir.Value) -> Spans:
    """From input_ids and position_ids int64 [batch, sequence] and attention_mask int64 [batch, total]."""
    b = builder
    length = b.op("Shape", mask, start=1, end=2)
    total = b.op("Cast", length, to=int(INT32))
    batch, sequence = b.op("Shape", ids, start=0, end=1), b.op("Shape", ids, start=1, end=2)
    last = b.op("Expand", b.op("Sub", total, b.constant([1], np.int32)), batch)
    bias = b.op("Cast", b.op("Sub", mask, b.constant(1, np.int64)), to=int(FLOAT))
    bias = b.op("Unsqueeze", b.op("Mul", bias, b.constant(MASKED, np.float32)), b.constant([1, 2], np.int64))
    one = b.constant([1], np.int64)
    padding = b.op("ArgMax", mask, axis=1, keepdims=1)
    later = b.op("Cast", b.op("Greater", length, sequence), to=int(INT64))
    places = b.op("Mul", b.op("Add", positions, padding), later)
    bias = b.op("Expand", bias, b.op("Concat", one, one, sequence, one, axis=0))
    last.name, total.name, places.name, bias.name = LAST_KEY, KEYS, PLACES, PADDING
    return Spans(last, total, bias, places)


def last_columns(builder: Builder, ids: ir.Value, mask: ir.Value) -> ir.Value:
    """Of input_ids int64 [batch, sequence], the column of each row's last unmasked token, int64 [batch, 1, 1].

    onnxruntime-genai pads prompts of unequal lengths on the right, where the last column is padding.
    """
    b = builder
    start = b.op("Neg", b.op("Shape", ids, start=1, end=2))
    current = b.op("Slice", mask, start, *(b.constant([value], np.int64) for value in (2**63 - 1, 1)))
    columns = b.op("ArgMax", b.op("Cast", current, to=int(INT32)), axis=1, keepdims=1, select_last_index=1)
    columns = b.op("Unsqueeze", columns, b.constant([2], np.int64))
    columns.name = COLUMNS
    return columns


def rows_at(builder: Builder, x: ir.Value, columns: ir.Value) -> ir.Value:
    """x [batch, sequence, width] at some columns of each row, int64 [batch, columns, 1] → [batch, columns, width]."""
    return builder.op("GatherND", x, columns, batch_dims=1)


def rotary_tables(builder: Builder, architecture: Architecture, key: str, context: int) -> tuple[ir.Value, ir.Value]:
    """cos and sin [context, rotary_dim / 2], computed in the graph and folded when it is loaded: no bytes on disk."""
    frequencies = builder.plain(f"rotary.{key}.inv_freq", architecture.rotary_dim // 2)
    steps = [builder.constant(value, np.float32) for value in (0, context, 1)]
    positions = builder.shared("Reshape", builder.shared("Range", *steps), builder.constant([-1, 1], np.int64))
    angles = builder.shared("Mul", positions, frequencies)
    tables = [builder.shared(function, angles) for function in ("Cos", "Sin")]
    if architecture.rope_scale != 1.0:
        tables = [
            builder.shared("Mul", table, builder.constant(architecture.rope_scale, np.float32)) for table in tables
        ]
    return tables[0], tables[1]


def attention(
    builder: Builder,
    architecture: Architecture,
    layer: int,
    qkv: Sequence[ir.Value],
    past: tuple[ir.Value, ir.Value],
    spans: Spans,
    context: int,
    cache: str = "float32",
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """(attention output [batch, sequence, heads * head_dim], present key, present value).

    `qkv` is queries, keys and values, or one value that holds all three side by side.
    """
    a = architecture
    rope = a.layer_ropes[layer]
    turned = (*rotary_tables(builder, a, rope, context), spans.places) if rope else (None, None, None)
    separate = qkv if len(qkv) == 3 else (*qkv, None, None)
    inputs = [*separate, *past, spans.last, spans.total, *turned, spans.bias]
    rounding: dict[str, str | int] = {}
    if cache == "int8":
        width = a.num_kv_heads * a.head_dim
        inputs += [None, *(builder.plain(cache_scale(layer, part), width) for part in ("key", "value"))]
        rounding = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    output, key, value = builder.node(
        "GroupQueryAttention",
        inputs,
        domain=MICROSOFT,
        outputs=[f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
        num_heads=a.num_heads,
        kv_num_heads=a.num_kv_heads,
        scale=float(a.attention_scale),
        softcap=float(a.attention_softcap),
        local_window_size=a.layer_windows[layer] or -1,
        do_rotary=1 if rope else 0,
        **rounding,
    )
    return output, key, value
