"""Rotated models: the same function, even activations, and all the way to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import edge_svd
from tiny_folder import tiny_folder

from edge_svd.architectures import Architecture
from edge_svd.errors import InputError
from edge_svd.fit import fit
from edge_svd.loading import load
from edge_svd.models import open_model
from edge_svd.rotation import orthogonal, rotated
from edge_svd.runtime.bundle import open_bundle, verify
from edge_svd.runtime.session import Session
from edge_svd.steps import Calibration, Planning

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {"pad_token_id": 0},
    "mistral": {},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_bias": True, "mlp_bias": True},
}


@pytest.mark.parametrize("width", [64, 96, 35])
def test_the_matrix_is_orthogonal_and_dense(width: int) -> None:
    r = orthogonal(width)
    assert torch.allclose(r @ r.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.equal(r, orthogonal(width))
    assert float(r.abs().min()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rotated_model_computes_the_same(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / family, family, **FAMILIES[family])
    plain, opened = open_model(str(folder)), open_model(str(folder))
    for model in (plain.model, opened.model):  # gains far from one
        torch.manual_seed(1)
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:
                weight += 0.5 * torch.rand_like(weight)
    turned = rotated(opened)
    ids = torch.arange(40)[None] % 300
    with torch.no_grad():
        wanted, found = plain.model(input_ids=ids).logits, turned.model(input_ids=ids).logits
    assert float((found - wanted).abs().max()) < 2e-4 * float(wanted.abs().max())
    assert turned.digest != plain.digest
    tied = FAMILIES[family].get("tie_word_embeddings", True)
    assert turned.architecture.head_rotation == tied
    assert [site.type for site in turned.sites].count("rotation") == tied
    for site in turned.sites:
        assert tuple(turned.model.get_submodule(site.name).weight.shape) == site.shape
    norms = [value for name, value in turned.norms().items() if not name.endswith(("q_norm.weight", "k_norm.weight"))]
    assert all((weight == 1).all() for weight in norms)
    assert Architecture.from_json(turned.architecture.to_json()) == turned.architecture


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "olmo2"])
def test_families_whose_norms_are_in_the_way_are_refused(family: str, tmp_path: Path) -> None:
    extra = {"n_inner": 160} if family == "gpt2" else {"tie_word_embeddings": False} if family == "olmo2" else {}
    opened = open_model(str(tiny_folder(tmp_path / family, family, **extra)))
    before = opened.digest
    with pytest.raises(InputError, match="cannot be rotated"):
        rotated(opened)
    assert open_model(opened_path := str(tmp_path / family)).digest == before, opened_path


def test_a_model_is_rotated_once(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="rotated already"):
        rotated(rotated(open_model(str(tiny_model))))


def test_a_rotated_model_is_fitted(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path) -> None:
    calibration = Calibration((str(tiny_text_file),), windows=8, window=64)
    planning = Planning(candidates="int8,int16", rotate=True)
    found = fit(str(tiny_model), tmp_path / "bundle", 175_000, calibration, planning)
    verify(found.bundle)
    assert "model.norm.rotation" in found.plan.sites
    assert found.measured["kl"] < 5 * found.plan.kl + 0.01 and found.proof.top1_agreement > 0.9
    opened = open_model(str(tiny_model))
    prompt = opened.tokenizer("The river near the stone keeps")["input_ids"]
    session = Session(open_bundle(found.bundle))
    with torch.no_grad():
        dense = opened.model(input_ids=torch.tensor([prompt])).logits[0, -1].numpy()
    assert np.abs(session.prefill(prompt) - dense).max() < 0.1 * np.abs(dense).max()


def test_the_steps_agree_about_what_is_rotated(
    tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path
) -> None:
    stats, plan, checkpoint = tmp_path / "stats", tmp_path / "plan.json", tmp_path / "checkpoint"
    text = ("--calibration", tiny_text_file, "--calibration-windows", 8, "--calibration-window", 64)
    assert edge_svd("calibrate", tiny_model, "-o", stats, "--rotate", *text).code == 0
    planned = ("plan", tiny_model, "-o", plan, "--stats", stats, "--size", "175kB", "--candidates", "int8,int16")
    edge_svd(*planned).refused(2, "another model")
    assert "model.norm.rotation" in edge_svd(*planned, "--rotate", "--json").json["plan"]["sites"]
    made = ("compress", tiny_model, "--plan", plan, "--stats", stats, "-o", checkpoint)
    edge_svd(*made).refused(2, "model.norm.rotation")
    assert edge_svd(*made, "--rotate").code == 0
    loaded, dense = load(checkpoint), open_model(str(tiny_model)).model
    ids = torch.arange(40)[None]
    with torch.no_grad():
        found, wanted = loaded(input_ids=ids).logits, dense(input_ids=ids).logits
    assert float((found - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
