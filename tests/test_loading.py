"""`edge_svd.load`: a checkpoint of any family gives the logits of the model that its rounded numbers stand for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edge_svd
from edge_svd.architectures import Site, sites_of
from edge_svd.errors import InputError
from edge_svd.factored import ComponentLinear, FactoredLinear
from edge_svd.formats import SiteFormat

sys.path.append(str(Path(__file__).parent / "export"))

from export_tiny import FAMILIES, INT8, INT16, make_checkpoint, tiny_model, torch_logits  # noqa: E402

LOW_RANK = SiteFormat("low-rank", 16, 16)
ROWS, COLUMNS = SiteFormat("row-pivoted", 16), SiteFormat("column-pivoted", 16)
SCALED = {
    "llama3": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
}


def mixed(site: Site) -> SiteFormat:
    """Every format in one model."""
    kinds = {"q": LOW_RANK, "qkv": LOW_RANK, "down": ROWS, "gate": COLUMNS, "gate_up": COLUMNS, "o": INT16}
    kinds |= {"k": SiteFormat("corrected", 16, bits=4, block=32), "v": SiteFormat("low-rank", k4=32)}
    return kinds.get(site.type, INT8)


def assert_same_logits(model: Any, path: Path) -> Any:
    loaded = edge_svd.load(path)
    tokens = np.random.default_rng(1).integers(3, 96, (2, 24))  # longer than every sliding window
    expected = torch_logits(model, tokens)
    np.testing.assert_allclose(torch_logits(loaded, tokens), expected, rtol=0, atol=2e-4 * np.abs(expected).max())
    return loaded


@pytest.mark.parametrize("family", list(FAMILIES))
def test_logits_of_every_family(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    architecture = make_checkpoint(tmp_path, model, mixed)
    loaded = assert_same_logits(model, tmp_path)
    kinds = [type(module) for module in loaded.modules()]
    assert kinds.count(FactoredLinear) == sum(mixed(site).factored for site in sites_of(architecture))
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    tied = loaded.lm_head.weight.data_ptr() == loaded.get_input_embeddings().weight.data_ptr()
    assert tied == architecture.tied_embeddings


@pytest.mark.parametrize("kernels", ["", "reference"])
def test_components_stay_as_they_are_stored(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SVD_KERNELS", kernels)
    model = tiny_model("llama")
    make_checkpoint(tmp_path, model, mixed)
    kept, unpacked = edge_svd.load(tmp_path, components=True), edge_svd.load(tmp_path)
    tokens = np.random.default_rng(1).integers(3, 96, (2, 24))
    expected = torch_logits(unpacked, tokens)
    np.testing.assert_allclose(torch_logits(kept, tokens), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    names = [name for name, module in kept.named_modules() if isinstance(module, ComponentLinear)]
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    q, v = (kept.get_submodule(f"model.layers.0.self_attn.{letter}_proj").components for letter in "qv")
    assert [part.a.dtype for part in q.parts] == [torch.int8, torch.float32]
    assert [(part.a.dtype, len(part.a)) for part in v.parts] == [(torch.int8, 32)]


@pytest.mark.parametrize("kind", list(SCALED))
def test_scaled_rotary_tables_come_from_the_checkpoint(kind: str, tmp_path: Path) -> None:
    settings = SCALED[kind] | {"original_max_position_embeddings": 32}
    model = tiny_model("llama", rope_scaling=settings)
    make_checkpoint(tmp_path, model, mixed)
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "smollm3", "olmo2", "gpt2", "opt"])
def test_the_cache_changes_nothing(family: str, tmp_path: Path) -> None:
    """Token by token through transformers' KV cache, as generation does it."""
    model = tiny_model(family)
    make_checkpoint(tmp_path, model, mixed)
    loaded = edge_svd.load(tmp_path)
    tokens = torch.from_numpy(np.random.default_rng(1).integers(3, 96, (1, 12)))
    expected = torch_logits(model, tokens.numpy())[0]
    cache, rows = None, []
    with torch.no_grad():
        for position in range(tokens.shape[1]):
            step = loaded(tokens[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            rows.append(step.logits[0, 0].numpy())
    np.testing.assert_allclose(np.stack(rows), expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        edge_svd.load(tmp_path)
