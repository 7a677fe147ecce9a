"""The GGUF that llama.cpp gets: rows in its order, every tensor, the tokenizer; refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from rivals.write_gguf import gguf_name, paired_rows, pre_tokenizer, write_gguf
from safetensors.torch import load_file

from edge_svd.errors import InputError

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize(("heads", "width", "columns"), [(1, 2, 3), (3, 8, 5), (9, 64, 7)])
def test_rows_of_a_rotary_pair_become_neighbours(heads: int, width: int, columns: int) -> None:
    weight = np.random.default_rng(0).normal(size=(heads * width, columns)).astype(np.float32)
    expected = np.empty_like(weight)
    for head in range(heads):
        for pair in range(width // 2):
            expected[head * width + 2 * pair] = weight[head * width + pair]
            expected[head * width + 2 * pair + 1] = weight[head * width + pair + width // 2]
    np.testing.assert_array_equal(paired_rows(weight, heads), expected)


def rotated(vector: Array, angles: Array, pairs: list[tuple[int, int]]) -> Array:
    result = vector.copy()
    for angle, (a, b) in zip(angles, pairs, strict=True):
        result[a] = vector[a] * np.cos(angle) - vector[b] * np.sin(angle)
        result[b] = vector[b] * np.cos(angle) + vector[a] * np.sin(angle)
    return result


def test_attention_scores_stay_where_they_were() -> None:
    """llama.cpp rotates neighbours, transformers rotates halves: queries · keys must agree."""
    random, width = np.random.default_rng(1), 8
    query, key = (random.normal(size=(width, 5)) for _ in range(2))
    hidden = random.normal(size=(2, 5))
    halves = [(i, i + width // 2) for i in range(width // 2)]
    neighbours = [(2 * i, 2 * i + 1) for i in range(width // 2)]
    angles = 0.3 * np.arange(1, width // 2 + 1)
    expected = rotated(query @ hidden[0], 7 * angles, halves) @ rotated(key @ hidden[1], 2 * angles, halves)
    q, k = paired_rows(query, 1), paired_rows(key, 1)
    found = rotated(q @ hidden[0], 7 * angles, neighbours) @ rotated(k @ hidden[1], 2 * angles, neighbours)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_whole_model(tiny_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    source = {name: value.float().numpy() for name, value in load_file(tiny_model / "model.safetensors").items()}
    source.pop("lm_head.weight", None)
    assert len(found) == len(source) and "output.weight" not in found
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}
    for name, value in source.items():
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
        np.testing.assert_array_equal(found[gguf_name(name)], paired_rows(value, heads) if heads else value)

    def field(name: str) -> Any:
        return reader.get_field(name).contents()

    config = json.loads((tiny_model / "config.json").read_bytes())
    assert field("llama.attention.head_count") == 4 and field("llama.attention.head_count_kv") == 2
    assert field("llama.block_count") == 2 and field("llama.rope.dimension_count") == 16
    assert field("llama.attention.layer_norm_rms_epsilon") == pytest.approx(config["rms_norm_eps"])
    content = json.loads((tiny_model / "tokenizer.json").read_bytes())
    tokens = field("tokenizer.ggml.tokens")
    assert len(tokens) == config["vocab_size"]
    assert all(tokens[index] == token for token, index in content["model"]["vocab"].items())
    assert len(field("tokenizer.ggml.merges")) == len(content["model"]["merges"]) > 0
    assert field("tokenizer.ggml.token_type")[:3] == [int(gguf.TokenType.CONTROL)] * 3
    assert field("tokenizer.ggml.eos_token_id") == 2 and field("tokenizer.ggml.add_bos_token") is False


def test_what_is_not_converted_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_bytes())
    for change in ({"rope_scaling": {"rope_type": "llama3"}}, {"rope_parameters": {"rope_type": "yarn"}}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InputError, match="rotary"):
            write_gguf(folder, tmp_path / "x.gguf")
    with pytest.raises(InputError, match="no place"):
        gguf_name("model.layers.0.self_attn.q_proj.bias")
    with pytest.raises(InputError, match="byte-level"):
        pre_tokenizer({"model": {"type": "Unigram"}, "pre_tokenizer": {"type": "ByteLevel"}})


def test_how_a_text_is_split_first() -> None:
    def kind(*parts: str) -> str:
        outer = {"type": "Sequence", "pretokenizers": [{"type": part} for part in parts]}
        return pre_tokenizer({"model": {"type": "BPE"}, "pre_tokenizer": outer})

    assert kind("Digits", "ByteLevel") == "smollm"
    assert kind("ByteLevel") == "gpt-2"
    assert kind("Split", "ByteLevel") == "default"
