"""The exported graph against torch: the same embeddings, whatever is padded, in every format."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from tiny_encoder import sentence_embeddings, tiny_encoder, tiny_passages, tiny_tokenizer

import edge_svd
from edge_svd.checkpoint import write_checkpoint
from edge_svd.encoders.opened import OpenedEncoder, open_encoder
from edge_svd.export.bundle import export_bundle
from edge_svd.formats import SiteFormat
from edge_svd.runtime import Embedder, verify
from edge_svd.runtime.bundle import open_bundle

sys.path.append(str(Path(__file__).parents[1] / "export"))
from export_tiny import quantise  # noqa: E402

INT8_NOISE = 0.01
"""Largest 1 - cosine that rounding of activations to int8 may make; measured 0.0005 on these models."""


def checkpoint_of(opened: OpenedEncoder, path: Path, formats: dict[str, SiteFormat]) -> Path:
    """A checkpoint rounded by plain code."""
    tensors = dict(opened.norms())
    for site in opened.sites:
        module = opened.model.get_submodule(site.name)
        made, _ = quantise(module.weight.detach().numpy(), formats[site.name])
        tensors |= {f"{site.name}.{suffix}": values for suffix, values in made.items()}
        if site.bias:
            tensors[f"{site.name}.bias"] = module.bias.detach().numpy()
    source = {"model": opened.name, "digest": opened.digest}
    write_checkpoint(path, opened.architecture, formats, {}, source, tensors, opened.companions)
    return path


def embedded(opened: OpenedEncoder, model: object) -> torch.Tensor:
    a = opened.architecture
    return sentence_embeddings(model, tiny_tokenizer(), tiny_passages(20), a.max_position, a.pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_16_bit_graph_computes_what_the_model_computes(pooling: str, act: str, tmp_path: Path) -> None:
    opened = open_encoder(str(tiny_encoder(tmp_path / "model", pooling, hidden_act=act)))
    formats = {site.name: SiteFormat("int16") for site in opened.sites}
    checkpoint = checkpoint_of(opened, tmp_path / "checkpoint", formats)
    dense = embedded(opened, opened.model)
    rounded = embedded(opened, edge_svd.load(checkpoint))
    assert float((1 - (dense * rounded).sum(1)).max()) < 2e-4  # positions take 8 bits
    embedder = Embedder(export_bundle(checkpoint, tmp_path / "bundle"))
    found = torch.from_numpy(embedder.embed(tiny_passages(20), batch=7))
    assert torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-5)
    assert float((1 - (rounded * found).sum(1)).max()) < INT8_NOISE


FORMATS = {
    "int8": SiteFormat("int8"),
    "low-rank": SiteFormat("low-rank", 32, 16),
    "pivoted": SiteFormat("row-pivoted", 32),
    "blocks": SiteFormat("blocks", bits=4, block=32, zero=True),
    "trellis": SiteFormat("trellis", bits=4),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_what_the_checkpoint_says(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    fmt = FORMATS[kind]
    formats = {
        site.name: fmt if fmt.fits(site.shape) and site.type != "embedding" else SiteFormat("int8")
        for site in opened.sites
    }
    if kind == "trellis":
        vocabulary = opened.architecture.vocab_size
        formats[opened.sites[0].name] = SiteFormat("table", rows=((5, 40), (2, vocabulary - 40)))
    checkpoint = checkpoint_of(opened, tmp_path / "checkpoint", formats)
    bundle = export_bundle(checkpoint, tmp_path / "bundle")
    verify(bundle)
    expected = embedded(opened, edge_svd.load(checkpoint))
    found = torch.from_numpy(Embedder(bundle).embed(tiny_passages(20)))
    assert float((1 - (expected * found).sum(1)).max()) < INT8_NOISE


def test_padding_changes_nothing(tiny_bert: Path, tmp_path: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    formats = {site.name: SiteFormat("int8") for site in opened.sites}
    checkpoint = checkpoint_of(opened, tmp_path / "checkpoint", formats)
    embedder = Embedder(export_bundle(checkpoint, tmp_path / "bundle"))
    texts = ["river", *tiny_passages(8)]
    together, alone = embedder.embed(texts), np.concatenate([embedder.embed([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5


def test_token_types_and_hidden_states_are_those_of_torch(tiny_bert: Path, tmp_path: Path) -> None:
    import onnxruntime

    opened = open_encoder(str(tiny_bert))
    formats = {site.name: SiteFormat("int16") for site in opened.sites}
    checkpoint = checkpoint_of(opened, tmp_path / "checkpoint", formats)
    bundle = export_bundle(checkpoint, tmp_path / "bundle")
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    ids = draw.integers(5, opened.architecture.vocab_size, (3, 11))
    mask = (np.arange(11) < np.array([[11], [6], [1]])).astype(np.int64)
    kinds = draw.integers(0, 2, (3, 11))
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
    found = session.run(["last_hidden_state"], feeds)[0]
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    with torch.no_grad():
        expected = edge_svd.load(checkpoint)(**tensors).last_hidden_state.numpy()
    kept = mask.astype(bool)
    error = np.linalg.norm((found - expected)[kept], axis=1) / np.linalg.norm(expected[kept], axis=1)
    assert error.max() < 0.1 and error.mean() < 0.04  # int8 activations


def test_bundle_says_what_it_is(tiny_bert: Path, tmp_path: Path) -> None:
    opened = open_encoder(str(tiny_bert))
    formats = {site.name: SiteFormat("int8") for site in opened.sites}
    bundle = export_bundle(checkpoint_of(opened, tmp_path / "checkpoint", formats), tmp_path / "bundle")
    manifest = open_bundle(bundle).manifest
    assert manifest.from_bytes(manifest.to_bytes()) == manifest
    assert manifest.encoder.max_context == 48 and manifest.encoder.pooling == "mean"
    assert not (bundle / "model_scoring.onnx").exists() and not (bundle / "genai_config.json").exists()
    scales = np.fromfile(bundle / "model.onnx.data", ml_dtypes.bfloat16, 8)
    assert np.isfinite(scales.astype(np.float32)).all()
