"""Int8 rows whose inputs share one scale a pass: the exported graph against torch with inputs rounded like that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_session import empty_cache, open_session, step
from export_tiny import INT8, make_checkpoint, tiny_model, torch_logits

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.errors import InputError
from edge_svd.export import export_bundle
from edge_svd.formats import WHOLE_PASS, SiteFormat
from edge_svd.runtime import onnx_session
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.errors import BundleError
from edge_svd.runtime.graph_products import graph_products
from edge_svd.runtime.kernel_support import whole_pass_works
from edge_svd.runtime.session import Session

WHOLE = SiteFormat("int8", block=WHOLE_PASS)
TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24))
TOLERANCE = 0.02
"""Logits of size about 2: numbers next to a tie are rounded up in one runtime and down in the other."""

pytestmark = pytest.mark.skipif(not whole_pass_works(), reason="this processor's int8 products overflow")


def choose(site: Site) -> SiteFormat:
    return INT8 if site.type in ("embedding", "lm_head") else WHOLE


def dynamically_quantised(x: torch.Tensor) -> torch.Tensor:
    """ONNX's DynamicQuantizeLinear and back, as its specification has it."""
    least, largest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (largest - least) / 255
    zero = round(min(max(-least / scale, 0.0), 255.0))
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


@contextmanager
def rounding(model: Any, a: Architecture) -> Iterator[None]:
    inner = [site for site in sites_of(a) if site.type not in ("embedding", "lm_head")]
    handles = [
        model.get_submodule(site.name).register_forward_pre_hook(lambda _, x: (dynamically_quantised(x[0]),))
        for site in inner
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("changes", [{}, {"hidden_size": 72}])
@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3", "phi3"])
def test_graphs_compute_what_torch_computes(
    family: str, changes: dict[str, Any], tmp_path: Path, exact_activations: None
) -> None:
    model = tiny_model(family, **changes)
    a = make_checkpoint(tmp_path / "checkpoint", model, choose)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    unrounded = torch_logits(model, TOKENS)
    with rounding(model, a):
        expected = torch_logits(model, TOKENS)
    logits, _ = step(open_session(bundle), a, TOKENS, empty_cache(a, 2))
    assert np.abs(logits - expected).mean() < 0.1 * np.abs(logits - unrounded).mean()
    assert np.abs(logits - expected).max() < TOLERANCE


def test_queries_keys_and_values_are_one_product_and_lie_in_memory_once(tmp_path: Path) -> None:
    a = make_checkpoint(tmp_path / "checkpoint", tiny_model("llama"), choose)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    found = graph_products((bundle / "model.onnx").read_bytes())
    assert [(p.rows, p.columns) for p in found if p.whole] == a.num_layers * [(128, 64), (64, 64), (192, 64), (64, 96)]
    weights = sum(p.rows * p.columns for p in found if p.whole)
    stored = (bundle / "model.onnx.data").stat().st_size
    assert weights < stored < weights + 3 * 96 * 64 + 16_000


def test_our_runtime_says_the_same_token_by_token_as_torch(tmp_path: Path, exact_activations: None) -> None:
    """A step is a pass of one token, so every row has a scale of its own."""
    model = tiny_model("llama")
    a = make_checkpoint(tmp_path / "checkpoint", model, choose)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    opened = Session(open_bundle(bundle))
    ids = TOKENS[0]
    found = [opened.prefill(ids[:1].tolist()).copy(), *(opened.step(int(token)).copy() for token in ids[1:])]
    past: Any = None
    expected = []
    with rounding(model, a), torch.no_grad():
        for token in ids:
            out = model(torch.tensor([[int(token)]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            expected.append(out.logits[0, -1].numpy())
    assert np.abs(np.array(found) - np.array(expected)).max() < TOLERANCE


def test_processors_that_compute_it_wrongly_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "checkpoint", tiny_model("llama"), choose)
    bundle = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle")
    monkeypatch.setattr(onnx_session, "whole_pass_works", lambda: False)
    with pytest.raises(BundleError, match="wrongly on this processor; fit the model for it with --device"):
        Session(open_bundle(bundle))


@pytest.mark.parametrize("kind", ["int16", "trellis", "low-rank"])
def test_other_kinds_have_no_such_product(kind: str) -> None:
    with pytest.raises(InputError, match="cannot have blocks of -1"):
        SiteFormat(kind, block=WHOLE_PASS, bits=3 if kind == "trellis" else 0, k8=16 if kind == "low-rank" else 0)
