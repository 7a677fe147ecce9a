"""From a GGUF file to a transformers model and tokenizer.

Llama, Qwen 2 and Qwen 3 files are read here, tensor by tensor, with the same result under every version of
transformers; other architectures go through transformers' own reader.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_svd.architectures import Architecture, architecture_of, norms_of, sites_of
from edge_svd.errors import InputError
from edge_svd.gguf_file import GgufFile
from edge_svd.layouts import EMBEDDING, HEAD

FAMILIES = ("llama", "qwen2", "qwen3")

_MODULES = {
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

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {"gpt-2": "", "smollm": "", "llama-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
"""How text is cut before merging, as the original tokenizers do it; "" is GPT-2's own way, which ByteLevel knows."""
_IGNORES_MERGES = ("llama-bpe",)
_CONTROL, _USER_DEFINED = 3, 4


def gguf_config(file: GgufFile) -> Any:
    """The transformers configuration of a file of one of FAMILIES; InputError naming what it lacks or cannot
    express.
    """
    from transformers import AutoConfig

    meta, family = file.metadata, str(file.metadata.get("general.architecture"))

    def get(key: str, default: Any = None) -> Any:
        value = meta.get(f"{family}.{key}", default)
        if value is None:
            raise InputError(f"The GGUF file {file.path} lacks the metadata {family}.{key}.")
        return value

    if meta.get(f"{family}.expert_count"):
        raise InputError(f"The GGUF file {file.path} holds a mixture of experts, which is not supported.")
    scaling = str(get("rope.scaling.type", "none"))
    if scaling not in ("none", "linear") or "rope_freqs.weight" in file.tensors:
        raise InputError(
            f"The GGUF file {file.path} scales its rotary frequencies; give the original model folder instead."
        )
    if "token_embd.weight" not in file.tensors:
        raise InputError(f"The GGUF file {file.path} lacks the tensor token_embd.weight.")
    heads, hidden = int(get("attention.head_count")), int(get("embedding_length"))
    values = {
        "architectures": [
            {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[family]
        ],
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": int(get("feed_forward_length")),
        "num_hidden_layers": int(get("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(get("attention.head_count_kv", heads)),
        "head_dim": int(get("attention.key_length", get("rope.dimension_count", hidden // heads))),
        "max_position_embeddings": int(get("context_length")),
        "rms_norm_eps": float(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(get("rope.freq_base", 10000.0)),
        "rope_scaling": {"rope_type": "linear", "factor": float(get("rope.scaling.factor"))}
        if scaling == "linear"
        else None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": family == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
    }
    return AutoConfig.for_model(family, **values)


def gguf_weights(file: GgufFile, model: Any) -> None:
    """Fill a transformers model in place, one tensor at a time; InputError naming a tensor that is missing or
    misshapen.
    """
    import torch

    architecture = architecture_of(model.config)
    owned = [site for site in sites_of(architecture) if not site.tied_to]
    names = (
        {f"{site.name}.weight" for site in owned}
        | {f"{site.name}.bias" for site in owned if site.bias}
        | set(norms_of(architecture))
    )
    parameters = dict(model.named_parameters())
    for name in sorted(names):
        values = _tensor(file, _source_name(name), name, architecture)
        if values.shape != tuple(parameters[name].shape):
            raise InputError(
                f"The tensor {_source_name(name)} of {file.path} has the shape {values.shape}, not the one of {name}."
            )
        with torch.no_grad():
            parameters[name].copy_(torch.from_numpy(values))


def gguf_tokenizer(file: GgufFile) -> Any | None:
    """A transformers tokenizer for byte-level BPE files with a known way of splitting text; None for any other."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    meta = file.metadata
    kind = str(meta.get("tokenizer.ggml.pre", "gpt-2"))
    if meta.get("tokenizer.ggml.model") != "gpt2" or kind not in _SPLITS:
        return None
    tokens, types = meta.get("tokenizer.ggml.tokens"), meta.get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("tokenizer.ggml.merges") or []]
    if not tokens or not merges or len(set(tokens)) != len(tokens):
        raise InputError(f"The GGUF file {file.path} holds no usable tokenizer.")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=kind in _IGNORES_MERGES))
    except Exception as error:  # tokenizers raises bare Exception for a merge that is not in the vocabulary
        raise InputError(f"The tokenizer of the GGUF file {file.path} is damaged ({error}).") from None
    backend.pre_tokenizer = pre_tokenizers.Sequence(_pre_tokenizers(kind))
    backend.decoder = decoders.ByteLevel()
    marked = [
        (token, kind) for token, kind in zip(tokens, types or [], strict=False) if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token, kind in marked])

    def named(role: str) -> str | None:
        index = meta.get(f"tokenizer.ggml.{role}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None

    if meta.get("tokenizer.ggml.add_bos_token") and (bos := named("bos")) is not None:
        from tokenizers import processors

        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary[bos])]
        )
    special = {
        "bos_token": named("bos"),
        "eos_token": named("eos"),
        "unk_token": named("unknown"),
        "pad_token": named("padding"),
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=int(meta.get(f"{meta.get('general.architecture')}.context_length") or 2048),
        chat_template=meta.get("tokenizer.chat_template"),
        **{role: token for role, token in special.items() if token is not None},
    )


def _pre_tokenizers(kind: str) -> list[Any]:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

    if _SPLITS[kind]:
        return [Split(Regex(_SPLITS[kind]), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    digits = [Digits(individual_digits=True)] if kind == "smollm" else []
    return [*digits, ByteLevel(add_prefix_space=False, use_regex=True)]


def _source_name(name: str) -> str:
    """GGUF's name of transformers' tensor `name`."""
    if name in (f"{EMBEDDING}.weight", "model.norm.weight", f"{HEAD}.weight"):
        return {f"{EMBEDDING}.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
            name, "output.weight"
        )
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{_MODULES[module]}.{suffix}"


def _tensor(file: GgufFile, source: str, name: str, architecture: Architecture) -> np.ndarray[Any, Any]:
    """One tensor as transformers orders it: llama files interleave the rotary halves of q and k."""
    if source not in file.tensors:
        raise InputError(f"The GGUF file {file.path} lacks the tensor {source}.")
    values = file.read(source)
    heads = {"q_proj": architecture.num_heads, "k_proj": architecture.num_kv_heads}.get(name.split(".")[-2])
    if architecture.family == "llama" and heads is not None and values.shape[0] % (2 * heads) == 0:
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
    return values
