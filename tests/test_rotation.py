"""Rotated models: the same function, even activations, and all the way to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import tiny_folder

from edge_svd.architectures import Architecture
from edge_svd.errors import InputError
from edge_svd.models import open_model
from edge_svd.rotation import orthogonal, rotated

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {},
    "gemma": {"hidden_activation": "gelu_pytorch_tanh"},
    "phi3": {"pad_token_id": 0},
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
