"""The files that travel beside an encoder's weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_svd.companions import _CONFIG_NOISE, _notice, compact_tokenizer
from edge_svd.encoders.architecture import Encoder
from edge_svd.files import canonical_json

_SPECIAL = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def companions(
    name: str, config: Mapping[str, Any], tokenizer: Any, architecture: Encoder, licence: bytes
) -> dict[str, bytes]:
    """File name → content; `config` is the source's JSON object, `licence` is empty if the source has none."""
    special = {role: str(getattr(tokenizer, role)) for role in _SPECIAL if getattr(tokenizer, role, None) is not None}
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _CONFIG_NOISE}
    # Rows of positions beyond the longest input are left out.
    kept["max_position_embeddings"] = architecture.max_position
    tokenizer_config = {
        **special,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": architecture.max_position,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "config.json": canonical_json(kept),
        "tokenizer.json": compact_tokenizer(tokenizer),
        "tokenizer_config.json": canonical_json(tokenizer_config),
        "special_tokens_map.json": canonical_json(special),
        "LICENSE": licence or _notice(name),
        "README.md": _card(name, architecture),
    }


def _card(name: str, a: Encoder) -> bytes:
    return (
        f"# {name}, compressed by edge-svd\n\n"
        f"A {a.family} sentence encoder of {a.num_layers} layers, hidden size {a.hidden_size} and {a.vocab_size} "
        "tokens, for onnxruntime. `edge_svd.json` names the source model, its digest, the plan and the digest of every "
        "file; `measurements.json` holds what was measured.\n\n"
        f"`model.onnx` gives `last_hidden_state` and `sentence_embedding` ({a.pooling} pooling, of length one); "
        '`edge_svd.runtime.Embedder(folder).embed(["a text"])` runs it. '
        "The licence of the source model is in `LICENSE`.\n"
    ).encode()
