"""Predicted sizes equal those of the files, and come fast enough to plan with."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from export_tiny import INT8, INT16, make_checkpoint, tiny_model

from edge_svd.architectures import architecture_of, sites_of
from edge_svd.checkpoint import Checkpoint
from edge_svd.export import exact_sizes, export_bundle
from edge_svd.formats import SiteFormat


def mixed(site: Any) -> SiteFormat:
    kinds = {"k": SiteFormat("low-rank", 16, 16), "o": SiteFormat("low-rank", 0, 16), "up": SiteFormat("low-rank", 32)}
    kinds["down"] = SiteFormat("row-pivoted", 16)
    kinds["gate"] = SiteFormat("column-pivoted", 16)
    return kinds.get(site.type, INT16 if site.type in ("q", "embedding") else INT8)


@pytest.mark.parametrize("family", ("llama", "qwen2", "gemma3", "phi3", "smollm3"))
@pytest.mark.parametrize("choose", (lambda site: INT8, mixed), ids=("int8", "mixed"))
def test_sizes_are_exact(family: str, choose: Any, tmp_path: Path) -> None:
    plan = {"sites": ["ä", 1.5], "nested": {"a": None}}
    make_checkpoint(tmp_path / "checkpoint", tiny_model(family), choose, plan=plan)
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", context=100)
    companions = {name: path.read_bytes() for name, path in checkpoint.companions.items()}
    sizes = exact_sizes(checkpoint.architecture, checkpoint.formats, companions, checkpoint.source, plan, context=100)
    assert sizes == {path.name: path.stat().st_size for path in bundle.iterdir()}


def test_graphs_of_thirty_layers_take_under_a_megabyte() -> None:
    small = architecture_of(tiny_model("llama").config)
    a = dataclasses.replace(
        small,
        hidden_size=576,
        intermediate_size=1536,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        rotary_dim=64,
        vocab_size=49152,
        layer_windows=(0,) * 30,
        layer_ropes=("global",) * 30,
    )
    formats = {site.name: INT8 if site.layer < 0 else SiteFormat("low-rank", 128, 32) for site in sites_of(a)}
    sizes = exact_sizes(a, formats, {"tokenizer.json": b"{}\n"}, {"model": "m", "digest": "0"}, {})
    assert sizes["model.onnx"] < 1_000_000 and sizes["model_scoring.onnx"] < 1_000_000
