"""Opening models from folders, and the files that travel with them; all on tiny models built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import TEXT, save, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from edge_svd.architectures import SUPPORTED
from edge_svd.errors import InputError
from edge_svd.models import open_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tiny_model(), tmp_path / "tiny")


def test_folder(folder: Path) -> None:
    opened = open_model(str(folder))
    assert opened.name == "tiny"
    assert not opened.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in opened.model.parameters())
    reference = dict(tiny_model().named_parameters())
    for name, parameter in opened.model.named_parameters():
        assert torch.equal(parameter, reference[name]), name
    assert opened.architecture.tied_embeddings and opened.architecture.eos_token_ids == (2,)


@pytest.mark.parametrize("family", SUPPORTED)
def test_norms_are_effective_and_rotary_tables_are_those_in_use(family: str, tmp_path: Path) -> None:
    changes = {"sliding_window": 8} if family == "gemma3_text" else {}
    if family == "phi3":
        changes["tie_word_embeddings"] = False
    opened = open_model(str(save(tiny_model(family, **changes), tmp_path / family)))
    x = torch.randn(3, opened.architecture.hidden_size)
    name = opened.architecture.layout.final_norm
    module, norms = opened.model.get_submodule(name), opened.norms()
    centred = x - x.mean(-1, keepdim=True) if family in ("gpt2", "opt") else x
    plain = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + opened.architecture.norm_eps)
    weight, bias = (
        torch.from_numpy(norms.get(f"{name}.{part}", np.zeros(1, np.float32))) for part in ("weight", "bias")
    )
    expected = plain * weight + bias
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
    tables = opened.rotary()
    assert set(tables) == set(opened.architecture.layer_ropes) - {""}
    for key, table in tables.items():
        base = {"local": 10000.0}.get(key, {"gemma3_text": 1e6, "smollm3": 2e6}.get(family, 1e4))
        steps = np.arange(0, opened.architecture.rotary_dim, 2) / opened.architecture.rotary_dim
        np.testing.assert_allclose(table, base**-steps, rtol=1e-5)


def test_digest_does_not_depend_on_the_file_format(tmp_path: Path) -> None:
    rounded = tiny_model().to(torch.bfloat16).to(torch.float32)
    one = open_model(str(save(rounded, tmp_path / "one")))
    two = open_model(str(save(rounded, tmp_path / "two", torch.bfloat16, "60KB")))
    assert len(list((tmp_path / "two").glob("*.safetensors"))) > 1
    assert one.digest == two.digest and one.tokenizer_digest == two.tokenizer_digest
    with torch.no_grad():
        two.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    two.__dict__.pop("digest")
    assert one.digest != two.digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    opened = open_model(str(save(tiny_model(), tmp_path / "half", dtype)))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(opened.model.get_parameter(name), tiny_model().get_parameter(name).to(dtype).float())


def test_attention_keeps_the_soft_cap(tmp_path: Path) -> None:
    opened = open_model(str(save(tiny_model("gemma2", attn_logit_softcapping=0.01), tmp_path / "gemma2")))
    assert opened.model.config._attn_implementation == "eager"


def test_companions_read_back_as_the_same_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "LICENSE").write_text("A licence.")
    opened = open_model(str(folder))
    files = opened.companions
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    again = AutoTokenizer.from_pretrained(tmp_path)
    sample = TEXT + "<s>user</s> \x00 \u00e9\u0301 🙂   x\r\n"
    assert again.encode(sample) == opened.tokenizer.encode(sample)
    assert again.decode(again.encode(TEXT)) == TEXT
    assert again.model_input_names == ["input_ids", "attention_mask"]
    turn = [{"role": "user", "content": "hi"}]
    assert again.apply_chat_template(turn, tokenize=False) == "<s>user: hi</s>"
    assert files["LICENSE"] == b"A licence."
    assert len(files["tokenizer.json"]) < (folder / "tokenizer.json").stat().st_size
    assert isinstance(json.loads(files["tokenizer.json"])["model"]["merges"][0], str)
    config = json.loads(files["config.json"])
    assert config["model_type"] == "llama" and "quantization_config" not in config
    assert AutoConfig.from_pretrained(tmp_path).num_hidden_layers == 2
    assert opened.companions == files


def test_end_tokens_come_from_the_generation_config(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 5]}))
    opened = open_model(str(folder))
    assert opened.architecture.eos_token_ids == (2, 5)
    assert json.loads(opened.companions["generation_config.json"])["eos_token_id"] == [2, 5]


def edit_weights(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, bad: float) -> None:
    edit_weights(folder, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].view(-1)[7:8].fill_(bad))
    with pytest.raises(InputError, match="model.layers.1.mlp.down_proj.weight"):
        open_model(str(folder))


def test_large_finite_weights_are_not_refused(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors["model.norm.weight"].fill_(3e38))
    assert open_model(str(folder)).name == "tiny"


def test_missing_tensor_is_refused_by_name(folder: Path) -> None:
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.0.mlp.gate_proj.weight"))
    with pytest.raises(InputError, match="model.layers.0.mlp.gate_proj.weight"):
        open_model(str(folder))


def test_folder_faults_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            open_model(str(folder))
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2

    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused("cannot be opened")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused("pickled")
    (folder / "pytorch_model.bin").unlink()
    refused("no weights")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    refused("no tokenizer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    refused("mamba.*supported are llama")
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nosuch"}))
    refused("nosuch")
    (folder / "config.json").write_text("{")
    refused("cannot be opened")
    (folder / "config.json").unlink()
    refused("no config.json")
    for name in (str(tmp_path / "nowhere"), str(tmp_path / "no.gguf"), "./nowhere", ""):
        with pytest.raises(InputError):
            open_model(name)


def test_already_quantised_models_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="already quantised"):
        open_model(str(folder))


def test_tokenizer_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="300 embeddings"):
        open_model(str(save(tiny_model(vocabulary=300), tmp_path / "small")))


def test_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_svd.models.hub_resolves", lambda: False)
    with pytest.raises(InputError, match="'nosuch-owner/nosuch-model'.*hub") as caught:
        open_model("nosuch-owner/nosuch-model")
    assert "\n" not in str(caught.value)


def test_gpt2_as_it_was_published(tmp_path: Path) -> None:
    """Without the body's prefix and the head, and with the masks of its attention among the tensors."""
    folder = save(tiny_model("gpt2"), tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    published = {name.removeprefix("transformer."): value for name, value in tensors.items() if "lm_head" not in name}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 128, 128).tril() for layer in range(2)}
    save_file(published | masks, folder / "model.safetensors", {"format": "pt"})
    opened, reference = open_model(str(folder)), tiny_model("gpt2")
    matrix = opened.model.get_submodule("transformer.h.1.mlp.c_fc").weight
    assert torch.equal(matrix, reference.transformer.h[1].mlp.c_fc.weight.T)
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, reference(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "first"), [("gpt2", 0), ("opt", 2)])
def test_positions_are_halves_from_position_0_on(family: str, first: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    opened = open_model(str(save(model, tmp_path / family)))
    ((name, table),) = opened.positions().items()
    assert table.dtype == np.float16 and table.shape == (128, 64)
    rows = model.get_parameter(name)[first:].detach().numpy()
    np.testing.assert_allclose(table, rows, rtol=2**-11, atol=2**-25)
    with torch.no_grad():
        opened.model.get_parameter(name)[5, 5] = 1e5
    with pytest.raises(InputError, match=f"{name} of {family} holds values beyond"):
        opened.positions()
