"""What the planner counts is what the exported graph holds."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "export"))

from export_tiny import tiny_model  # noqa: E402

from edge_svd.architectures import Architecture, architecture_of, sites_of
from edge_svd.devices import MemoryCosts
from edge_svd.export.decoder import decoder
from edge_svd.formats import KINDS, KV_CACHES, WHOLE_PASS, SiteFormat
from edge_svd.fusing import fused
from edge_svd.planner.memory import (
    CODE,
    Load,
    cache_bytes,
    loaded_bytes,
    loading_memory,
    matrix_bytes,
    peak_memory,
    product_bytes,
    running_memory,
)
from edge_svd.planner.products import PRODUCTS, Product, products
from edge_svd.runtime.graph_products import graph_products

COSTS = MemoryCosts(1000, 100, 2.0, 10, 12.0)
FORMATS = [
    SiteFormat("int8"),
    SiteFormat("int8", block=WHOLE_PASS),
    SiteFormat("int8", block=16),
    SiteFormat("int16"),
    SiteFormat("int16", block=16),
    SiteFormat("trellis", bits=3, block=16),
    SiteFormat("low-rank", 16, 0),
    SiteFormat("low-rank", 16, 0, block=16),
    SiteFormat("low-rank", 0, 16),
    SiteFormat("low-rank", 16, 16),
    SiteFormat("low-rank", k4=32),
    SiteFormat("low-rank", 16, k4=32),
    SiteFormat("corrected", 16, bits=4, block=32),
    SiteFormat("corrected", 32, bits=2, block=32, zero=True),
    SiteFormat("row-pivoted", 16),
    SiteFormat("column-pivoted", 16),
]


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return architecture_of(tiny_model("llama").config)


def chosen(architecture: Architecture, fmt: SiteFormat) -> dict[str, SiteFormat]:
    """Every matrix in `fmt`, the vocabulary's in int8."""
    return {
        site.name: SiteFormat("int8") if site.type in ("embedding", "lm_head") else fmt
        for site in sites_of(architecture)
        if not site.tied_to
    }


def test_every_kind_has_an_entry() -> None:
    assert set(PRODUCTS) == set(KINDS)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_products_are_those_of_the_graph(fmt: SiteFormat, architecture: Architecture) -> None:
    formats = chosen(architecture, fmt)
    graph = decoder(architecture, formats, context=64, every_position=False).model
    groups = {site.name: group for group in fused(architecture, formats) for site in group}
    counted: Counter[tuple[int, int, int, int]] = Counter()
    for site in sites_of(architecture):
        if site.type == "embedding":
            continue
        group = groups.get(site.name, (site,))
        if site != group[0]:
            continue  # computed in the product of the first
        for p in products(site.shape, formats[site.name]):
            rows = sum(other.shape[0] for other in group) if len(group) > 1 else p.rows
            counted[rows, p.columns, p.bits, p.block] += 1
    assert counted == Counter((p.rows, p.columns, p.bits, p.block) for p in graph_products(graph))


def test_resident_bytes_of_an_int8_matrix_by_hand() -> None:
    # 64 rows of 96 numbers in 3 blocks of 32, 12 bytes a block, 10 for the call.
    assert matrix_bytes((64, 96), SiteFormat("int8"), COSTS) == 64 * 96 + 64 * 3 * 12 + 10


def test_two_bits_are_packed_four_blocks_at_a_time() -> None:
    # 5 blocks of 128 take the room of 8, with what kernels pack beside the numbers.
    product = Product(64, 640, 2, 128)
    assert product_bytes(product, COSTS) == 64 * (8 * 32 + 8 * 12) + 10
    assert product_bytes(Product(64, 640, 4, 128), COSTS) == 64 * (5 * 64 + 5 * 12) + 10


def test_cache_is_counted_in_the_graph_s_own_elements(architecture: Architecture) -> None:
    one = cache_bytes(architecture, 1, KV_CACHES["float32"])
    assert one == architecture.num_layers * 2 * architecture.num_kv_heads * architecture.head_dim * 4
    formats = chosen(architecture, SiteFormat("int8"))
    wide, narrow = (peak_memory(architecture, formats, COSTS, Load(100, 8, 50, kind)) for kind in KV_CACHES)
    assert wide.parts["KV cache"] == 4 * narrow.parts["KV cache"] == 100 * one
    assert wide.parts["tokenizer"] == 100 and wide.total == sum(wide.parts.values())


def test_longer_contexts_and_chunks_take_more(architecture: Architecture) -> None:
    formats = chosen(architecture, SiteFormat("low-rank", 16))
    totals = [
        peak_memory(architecture, formats, COSTS, Load(context, chunk, 50)).total
        for context, chunk in ((32, 8), (64, 8), (64, 32))
    ]
    assert totals == sorted(totals) and len(set(totals)) == 3


def test_unpacked_rows_are_held_while_loading_only(architecture: Architecture) -> None:
    """A code's int8 rows and all scales lie beside the packed copies until the cache and the passes need the room."""
    coded, plain = (chosen(architecture, fmt) for fmt in (SiteFormat("trellis", bits=4), SiteFormat("int8")))
    load = Load(256, 8, 50)
    rows = sum(
        site.shape[0] * site.shape[1]
        for site in sites_of(architecture)
        if not site.tied_to and site.type not in ("embedding", "lm_head")
    )
    loading = [loading_memory(architecture, formats, COSTS, load) for formats in (coded, plain)]
    head = "embedding" if architecture.tied_embeddings else "lm_head"
    scales = sum(
        4 * product.rows * product.blocks
        for site in sites_of(architecture)
        if not site.tied_to and (site.type not in ("embedding", "lm_head") or site.type == head)
        for product in products(site.shape, plain[site.name])
    )
    [table] = [site for site in sites_of(architecture) if site.type == head]
    early = max(0, math.prod(table.shape) - round(rows / 4))
    assert loading[1].parts["loading"] == scales + early + round(CODE * COSTS.process_bytes)
    assert loading[0].parts["loading"] == loading[1].parts["loading"] + rows
    assert loading[0].parts["KV cache"] == loading[0].parts["activations"] == 0
    running = [running_memory(architecture, formats, COSTS, load) for formats in (coded, plain)]
    assert running[0] == running[1] and running[0].parts["loading"] == 0
    for context in (8, 4096):
        load = Load(context, 8, 50)
        both = [phase(architecture, coded, COSTS, load) for phase in (loading_memory, running_memory)]
        assert peak_memory(architecture, coded, COSTS, load) == both[context > 8]


def test_a_pattern_is_not_counted_with_each_factor(architecture: Architecture) -> None:
    """Scales that equal factors share are one small constant; of a low-rank matrix its A has scales of its own."""
    site = next(site for site in sites_of(architecture) if site.name.endswith("down_proj"))
    first, second = products(site.shape, SiteFormat("low-rank", 16))
    assert second.pattern and not first.pattern
    assert loaded_bytes(architecture, site, SiteFormat("low-rank", 16)) == 4 * first.rows * first.blocks


def test_a_large_vocabulary_is_packed_beside_what_it_is_packed_from(architecture: Architecture) -> None:
    """What follows it weighs too little to hide that."""
    table = next(site for site in sites_of(architecture) if site.type in ("embedding", "lm_head") and not site.tied_to)
    head = next(site for site in sites_of(architecture) if site.type == "lm_head")
    site = table if head.tied_to else head
    large = replace(site, shape=(10_000_000, site.shape[1]))
    others = sum(math.prod(s.shape) for s in sites_of(architecture) if s.type not in ("embedding", "lm_head"))
    [product] = products(large.shape, SiteFormat("int8"))
    expected = math.prod(large.shape) - round(others / 4) + 4 * product.rows * product.blocks
    assert loaded_bytes(architecture, large, SiteFormat("int8")) == expected
