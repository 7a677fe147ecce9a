"""Which matrices become one product."""

from __future__ import annotations

from edge_svd.architectures import Site
from edge_svd.formats import SiteFormat
from edge_svd.fusing import joined, kernel, together

SITES = [
    Site(f"model.layers.0.self_attn.{kind}_proj", kind, 0, (rows, 64), "model.layers.0.attention", "", False)
    for kind, rows in (("q", 64), ("k", 32), ("v", 32))
]


def groups(*formats: SiteFormat, biases: tuple[str, ...] = ()) -> list[str]:
    chosen = {site.name: fmt for site, fmt in zip(SITES, formats, strict=True)}
    return ["".join(site.type for site in group) for group in together(SITES, chosen, biases)]


def test_equal_kernels_are_one_product() -> None:
    int8, wide = SiteFormat("int8"), SiteFormat("int8", block=64)
    assert groups(int8, int8, int8) == ["qkv"]
    assert groups(wide, int8, wide) == ["qv", "k"]
    assert groups(*(SiteFormat("trellis", bits=bits) for bits in (2, 5, 3))) == ["qkv"]
    assert groups(SiteFormat("trellis", bits=2), int8, int8) == ["q", "kv"]  # codes are unpacked, rows are not
    assert groups(wide, SiteFormat("blocks", bits=8, block=64), wide) == ["qv", "k"]  # a scale a row, and one a block


def test_blocks_must_be_alike_in_everything() -> None:
    four = SiteFormat("blocks", bits=4, block=32)
    for other in (
        SiteFormat("blocks", bits=2, block=32),
        SiteFormat("blocks", bits=4, block=64),
        SiteFormat("blocks", bits=4, block=32, zero=True),
    ):
        assert groups(four, other, four) == ["qv", "k"]
    assert groups(four, four, four) == ["qkv"]


def test_several_products_or_a_bias_of_one_stay_apart() -> None:
    factors = SiteFormat("low-rank", 16)
    assert kernel(SITES[0], factors) is None
    assert groups(factors, factors, factors) == ["q", "k", "v"]
    int8 = SiteFormat("int8")
    assert groups(int8, int8, int8, biases=(SITES[1].name,)) == ["qv", "k"]


def test_names() -> None:
    assert joined([site.name for site in SITES]) == "model.layers.0.self_attn.q_proj+k_proj+v_proj"
