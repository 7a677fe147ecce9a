"""The peak resident memory of a process that runs a plan, before anything is built.

What onnxruntime 1.32 holds (measured by benchmarks/resident_products.py and benchmarks/memory_model.py):

There are two peaks, and the larger one counts: while the session is made, when the int8 rows that codes were unpacked
into, and all scales, lie beside what onnxruntime makes of them; and at the end of a full context, when they have been
given back (`runtime.handed_over`).

- MatMulNBits keeps a packed anonymous copy of the numbers, two fp32 values a block (the packed scale, the sum of the
  block; three where its kernels read the scale itself too), and some kilobytes a call for the node itself. The mapped
  file pages it packed from are given back. Rows of the token table are read from the file one by one
  (`runtime.token_rows`), so that of the table only what a tied head packed is resident.
- While a matrix is packed, what it is packed from is resident too; the vocabulary's is packed first, when little is.
- The KV cache is one buffer a layer and part, so a full context costs exactly its bytes.
- A pass keeps the layer's activations, and one more buffer for nearly every different width that passes between two
  products: the arena finds no freed buffer of the right size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from edge_svd.architectures import Site, sites_of
from edge_svd.described import Described
from edge_svd.devices import MemoryCosts
from edge_svd.formats import CODED, KV_CACHES, SiteFormat, padded
from edge_svd.fusing import fused, merges
from edge_svd.planner.products import Product, calls, multiplied
from edge_svd.runtime.graph_products import packed_blocks
from edge_svd.runtime.lookup import MOST

FLOAT_BYTES = 4
HALF_BYTES = 2
REUSE = 30
"""A freed buffer serves a request of up to half its size, so with many different widths fewer buffers stay: their sum S
counts as S / (1 + S / (REUSE * widest)). Fitted on plans of 0 to 29,000 numbers of different widths a token."""

QUANTISED = 1.5
"""Bytes an input of a product takes as int8 with its block scales and sums, while the product runs."""

PARTS = ("process", "tokenizer", "embedding", "weights", "loading", "KV cache", "activations", "reserve")

FOLLOWING = 0.25
"""Bytes a weight that are packed, at the least, after the vocabulary's matrix, which is packed first."""

CODE = 0.23
"""Code that runs while the session is made and is given back then (`runtime.memory.release_code_pages`), as a share of
the process before it; measured on x86-64."""

RESERVE = 0.015
"""Share of all else that is set aside for what differs from run to run, so that a target is kept and not just met on
average: measured peaks lie up to 1.3% above the sum of the other parts."""


@dataclass(frozen=True)
class Load:
    """What the process is asked to hold, beyond the weights.

    Attributes:
        context: tokens in the cache; chunk: prompt tokens a pass.
        kv_cache: kind of KV cache, as in `formats.KV_CACHES`.
        tokenizer_bytes: size of tokenizer.json.
    """

    context: int
    chunk: int
    tokenizer_bytes: int
    kv_cache: str = "float32"


@dataclass(frozen=True)
class Memory:
    """Predicted resident bytes at the peak, by part (keys: PARTS)."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def dominant(self) -> str:
        """The largest part."""
        return max(self.parts, key=lambda part: self.parts[part])


def product_bytes(product: Product, costs: MemoryCosts) -> float:
    """Anonymous bytes that one product holds, its scales counted as its own."""
    packed = packed_blocks(product.blocks, product.bits)
    numbers = packed * product.block * product.bits / 8
    zeros = product.blocks if product.zero_points else 0
    return product.rows * (numbers + zeros + costs.block_bytes * packed) + costs.product_bytes


def loaded_bytes(architecture: Described, site: Site, fmt: SiteFormat) -> int:
    """Resident bytes, until the session is made, beside what is packed of a matrix.

    Its scales, and the int8 rows that a code is turned into; of the vocabulary's matrix also what it is packed from,
    as far as what is packed after it does not outweigh that.
    """
    if not multiplied(site, architecture):
        return 0
    own = calls(site.shape, fmt).products
    stored = sum(p.rows * p.columns * p.bits // 8 for p in own)
    held = sum(FLOAT_BYTES * p.rows * p.blocks for p in own if not p.pattern)
    if fmt.kind in CODED:
        held += stored
    if _vocabulary(site):
        others = sum(math.prod(other.shape) for other in sites_of(architecture) if not _vocabulary(other))
        held += max(0, stored - round(FOLLOWING * others))
    return held


def _vocabulary(site: Site) -> bool:
    return site.type in ("embedding", "lm_head")


def matrix_bytes(shape: tuple[int, int], fmt: SiteFormat, costs: MemoryCosts) -> int:
    """Resident bytes of an m x n matrix's products: what the solver trades in."""
    return round(sum(product_bytes(p, costs) for p in calls(shape, fmt).products))


def cache_bytes(architecture: Described, context: int, item_bytes: int) -> int:
    """Bytes of the KV cache of one conversation."""
    a = architecture
    return 2 * a.num_layers * a.num_kv_heads * a.head_dim * context * item_bytes


def table_bytes(architecture: Described, shape: tuple[int, int], fmt: SiteFormat, costs: MemoryCosts) -> int:
    """Resident bytes of the token embedding [vocabulary, hidden]: the head's packed copy if tied."""
    return matrix_bytes(shape, fmt, costs) if architecture.tied_embeddings else 0


def position_bytes(architecture: Described, load: Load) -> int:
    """Resident bytes of a table of learned positions: a full context touches every row that the file has."""
    return HALF_BYTES * load.context * architecture.hidden_size if architecture.learned_positions else 0


def activation_bytes(architecture: Described, formats: Mapping[str, SiteFormat], load: Load) -> int:
    """Bytes of one pass over `load.chunk` tokens at the end of the context, and of the rotary tables and the logits."""
    a = architecture
    queries, keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    layer = 2 * a.hidden_size + 3 * queries + 3 * keys + (3 if a.gated else 2) * a.intermediate_size
    own = {a.hidden_size, queries, keys, a.intermediate_size}
    between: set[int] = set()
    for site in sites_of(a):
        if site.type not in ("embedding", "lm_head") and not site.tied_to:
            own |= set(site.shape)
            between |= set(calls(site.shape, formats[site.name]).widths)
    if a.fused_gate_up:
        layer += 2 * a.intermediate_size
    if a.fused_qkv:
        layer += queries + 2 * keys
    # What one product gives for several matrices is split among them.
    outputs: dict[int, int] = {}
    for group in fused(a, formats):
        outputs[group[0].layer] = outputs.get(group[0].layer, 0) + sum(site.shape[0] for site in group)
    layer += max(outputs.values(), default=0)
    widest = padded(max(a.hidden_size, a.intermediate_size, queries))
    chunk = min(load.chunk, load.context)
    different = sum(between - own)
    token = FLOAT_BYTES * (layer + different / (1 + different / (REUSE * widest))) + QUANTISED * widest
    ropes = len({rope for rope in a.layer_ropes if rope})
    tables = FLOAT_BYTES * a.rotary_dim * load.context * ropes
    logits = FLOAT_BYTES * a.vocab_size * (1 + MOST)
    return round(chunk * token + tables + logits)


def peak_memory(architecture: Described, formats: Mapping[str, SiteFormat], costs: MemoryCosts, load: Load) -> Memory:
    """Predicted peak resident bytes of a fresh process that fills the context, as `edge-svd bench` measures it."""
    found = (phase(architecture, formats, costs, load) for phase in (running_memory, loading_memory))
    return max(found, key=lambda memory: memory.total)


def running_memory(
    architecture: Described, formats: Mapping[str, SiteFormat], costs: MemoryCosts, load: Load
) -> Memory:
    """Predicted resident bytes in a pass at the end of a full context."""
    cache = cache_bytes(architecture, load.context, KV_CACHES[load.kv_cache])
    passing = activation_bytes(architecture, formats, load)
    return _with_reserve(_held(architecture, formats, costs, load) | {"KV cache": cache, "activations": passing})


def loading_memory(
    architecture: Described, formats: Mapping[str, SiteFormat], costs: MemoryCosts, load: Load
) -> Memory:
    """Predicted resident bytes when the session has just been made and nothing is given back yet."""
    owners = [site for site in sites_of(architecture) if not site.tied_to]
    rows = sum(loaded_bytes(architecture, site, formats[site.name]) for site in owners)
    return _with_reserve(
        _held(architecture, formats, costs, load) | {"loading": rows + round(CODE * costs.process_bytes)}
    )


def _held(architecture: Described, formats: Mapping[str, SiteFormat], costs: MemoryCosts, load: Load) -> dict[str, int]:
    """What stays from the loading to the end."""
    embedding, weights = float(position_bytes(architecture, load)), 0.0
    for site in sites_of(architecture):
        if site.tied_to:
            continue
        if site.type == "embedding":
            embedding += table_bytes(architecture, site.shape, formats[site.name], costs)
            continue
        for product in calls(site.shape, formats[site.name]).products:
            weights += product_bytes(product, costs)
    weights -= costs.product_bytes * merges(architecture, formats)
    return {
        "process": costs.process_bytes + costs.session_bytes,
        "tokenizer": round(costs.tokenizer_ratio * load.tokenizer_bytes),
        "embedding": round(embedding),
        "weights": round(weights),
    }


def _with_reserve(parts: Mapping[str, int]) -> Memory:
    every = {part: parts.get(part, 0) for part in PARTS}
    return Memory(every | {"reserve": round(RESERVE * sum(every.values()))})
