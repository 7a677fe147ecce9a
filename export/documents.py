"""The JSON files of a bundle: the manifest, the place for measurements, and onnxruntime-genai's configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import edge_svd
from edge_svd.architectures import Architecture
from edge_svd.described import Described
from edge_svd.encoders.architecture import Encoder
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.runtime.schema import MODEL_NAME, SCHEMA

GENAI = "genai_config.json"
GENERIC, UNKNOWN_TO_GENAI = "decoder", ("olmo2", "gpt2", "opt")
"""onnxruntime-genai's word for a decoder that it has no other word for, and the families of which that holds; its gpt2
means graphs with one tensor for keys and values."""

GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
DEFAULT_CONTEXT = 2048


def context_length(architecture: Described, context: int | None) -> int:
    """The bundle's longest context in tokens; InputError if it exceeds the model's."""
    if context is None:
        return min(DEFAULT_CONTEXT, architecture.max_position)
    if not 1 <= context <= architecture.max_position:
        raise InputError(
            f"A context of {context} tokens is impossible; this model takes between 1 and {architecture.max_position}."
        )
    return context


def kv_cache(plan: Mapping[str, Any]) -> str:
    """The kind of KV cache that a plan's JSON asks for; one without any, as a test writes it, has the exact one."""
    return str(plan.get("kv_cache", "float32"))


def manifest(
    architecture: Described,
    context: int,
    source: Mapping[str, str],
    plan: Mapping[str, Any],
    files: Mapping[str, tuple[int, str]],
) -> bytes:
    """edge_svd.json; `files` gives (bytes, sha256) of every other file but the measurements."""
    return canonical_json(
        {
            "schema": SCHEMA,
            "edge_svd": edge_svd.__version__,
            "source": {key: source[key] for key in ("model", "digest")},
            "model": _encoder(architecture)
            if isinstance(architecture, Encoder)
            else _decoder(architecture, context, kv_cache(plan)),
            "plan": dict(plan),
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()},
        }
    )


def _decoder(a: Architecture, context: int, cache: str) -> dict[str, Any]:
    return {
        "family": a.family,
        "vocab_size": a.vocab_size,
        "num_layers": a.num_layers,
        "num_kv_heads": a.num_kv_heads,
        "head_dim": a.head_dim,
        "kv_dtype": cache,
        "max_context": context,
        "bos_token_id": a.bos_token_id,
        "eos_token_ids": list(a.eos_token_ids),
    }


def _encoder(a: Encoder) -> dict[str, Any]:
    """An encoder takes what its table of positions has, whatever context was asked for."""
    return {
        "kind": "encoder",
        "family": a.family,
        "vocab_size": a.vocab_size,
        "num_layers": a.num_layers,
        "hidden_size": a.hidden_size,
        "max_context": a.max_position,
        "pooling": a.pooling,
        "pad_token_id": a.pad_token_id,
    }


def companion(name: str, data: bytes, context: int) -> bytes:
    """A file that travels beside the weights, as a bundle for `context` tokens has it.

    The tokenizer's limit is the graph's, so that truncation stops where the rotary tables end.
    """
    value = _object(data) if name == TOKENIZER_CONFIG else {}
    return canonical_json({**value, "model_max_length": context}) if value else data


def pad_token_id(generation: bytes, architecture: Architecture) -> int:
    """The token that pads batches: what generation_config.json (empty if there is none) says, else the end token."""
    pad = _object(generation).get("pad_token_id")
    if type(pad) is int and 0 <= pad < architecture.vocab_size:
        return pad
    return architecture.eos_token_ids[0] if architecture.eos_token_ids else 0


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object in a file of others, empty if there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def genai_config(architecture: Architecture, context: int, pad: int) -> bytes:
    """What onnxruntime-genai needs to run model.onnx: names of inputs and outputs, sizes, greedy search."""
    a = architecture
    eos = list(a.eos_token_ids)
    ends: Any = eos[0] if len(eos) == 1 else eos
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL_NAME,
        "head_size": a.head_dim,
        "hidden_size": a.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": a.num_heads,
        "num_hidden_layers": a.num_layers,
        "num_key_value_heads": a.num_kv_heads,
    }
    model = {
        "bos_token_id": a.bos_token_id if a.bos_token_id is not None else pad,
        "context_length": context,
        "decoder": decoder,
        "eos_token_id": ends if eos else pad,
        "pad_token_id": pad,
        "type": GENERIC if a.family in UNKNOWN_TO_GENAI else a.family,
        "vocab_size": a.vocab_size,
    }
    search = {
        "diversity_penalty": 0.0,
        "do_sample": False,
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": context,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": True,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 1,
        "top_p": 1.0,
    }
    return canonical_json({"model": model, "search": search}, indent=2)
