"""An fp32 GGUF of a Hugging Face Llama folder, as llama.cpp's own quantisation takes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from edge_svd.errors import InputError

Array = np.ndarray[Any, Any]

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def paired_rows(weight: Array, heads: int) -> Array:
    """Rows of a query or key matrix [heads · width, n] in llama.cpp's order.

    A rotary pair is rows i and i + width / 2 of a head in transformers, rows 2i and 2i + 1 in llama.cpp.
    """
    width = weight.shape[0] // heads
    order = np.arange(width).reshape(2, width // 2).T.ravel()
    return np.ascontiguousarray(weight.reshape(heads, width, -1)[:, order].reshape(weight.shape))


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor; InputError where a Llama has none of that name."""
    if name in NAMES:
        return NAMES[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if found and found[2] in LAYER_NAMES:
        return f"blk.{found[1]}.{LAYER_NAMES[found[2]]}"
    raise InputError(f"The tensor {name} has no place in a GGUF of the Llama architecture.")


def tensors(folder: Path) -> Iterator[tuple[str, Array]]:
    """Every tensor in fp32, by transformers' name; a tied lm_head that was stored is left out."""
    tied = json.loads((folder / "config.json").read_bytes()).get("tie_word_embeddings", False)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (not a mapping)
                if not (tied and name == "lm_head.weight") and not name.endswith("rotary_emb.inv_freq"):
                    yield name, content.get_tensor(name).float().numpy()


def write_gguf(folder: Path, file: Path) -> None:
    """Write FILE; InputError on what the conversion does not know: scaled rotary positions, other tokenizers."""
    config = json.loads((folder / "config.json").read_bytes())
    rotary = config.get("rope_parameters") or {}
    if config.get("rope_scaling") or rotary.get("rope_type", "default") != "default":
        raise InputError("Scaled rotary positions are not converted to GGUF.")
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rotary.get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    add_tokenizer(writer, folder, config)
    for name, value in tensors(folder):
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = paired_rows(value, heads if name.endswith("q_proj.weight") else kv_heads)
        writer.add_tensor(gguf_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Tokens, their kinds and merges of a byte-level BPE; InputError for other kinds."""
    content = json.loads((folder / "tokenizer.json").read_bytes())
    kind = pre_tokenizer(content)
    tokens = [f"[PAD{index}]" for index in range(int(config["vocab_size"]))]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for token, index in content["model"]["vocab"].items():
        tokens[index], kinds[index] = token, gguf.TokenType.NORMAL
    for added in content.get("added_tokens", ()):
        special = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], kinds[added["id"]] = added["content"], special
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    for key, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        value = config.get(key)
        first = value[0] if isinstance(value, list) else value
        if first is not None:
            add(int(first))


def pre_tokenizer(content: dict[str, Any]) -> str:
    """llama.cpp's name of the way a text is split first. Only ids reach the model here, so a near one does."""
    outer = content.get("pre_tokenizer") or {}
    parts = [part["type"] for part in outer.get("pretokenizers", [outer]) if part.get("type")]
    if content["model"]["type"] != "BPE" or "ByteLevel" not in parts:
        raise InputError("Only tokenizers of the byte-level BPE kind are converted to GGUF.")
    if "Digits" in parts:
        return "smollm"
    return "gpt-2" if parts == ["ByteLevel"] else "default"
