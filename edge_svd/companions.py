"""The files that travel beside the weights: configurations, tokenizer, licence and model card, as small as they can
be.

Every byte counts against the user's budget, so JSON is written without spaces, and the tokenizer in its shortest
equivalent form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_svd.architectures import Architecture
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.portable import portable_template, portable_tokenizer

LICENCE_NAMES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_CONFIG_NOISE = ("auto_map", "quantization_config", "torch_dtype", "dtype", "transformers_version")


def compact_tokenizer(tokenizer: Any) -> bytes:
    """tokenizer.json of a fast tokenizer without padding, truncation or spaces, its merges as "a b" where that
    reads back the same.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    plain = json.loads(backend.to_str())
    processor = plain.get("post_processor") or {}
    if processor.get("type") == "TemplateProcessing" and not processor.get("special_tokens"):
        plain["post_processor"] = None  # transformers 5 adds one that does nothing
        backend = Tokenizer.from_str(json.dumps(plain))
    text = backend.to_str()
    candidates = [plain]
    merges = plain["model"].get("merges")
    if merges and isinstance(merges[0], list):
        joined = {**plain, "model": {**plain["model"], "merges": [" ".join(pair) for pair in merges]}}
        candidates.insert(0, joined)
    for candidate in candidates:
        short = json.dumps(candidate, ensure_ascii=False, separators=(",", ":"))
        try:
            if Tokenizer.from_str(short).to_str() == text:
                return short.encode()
        except Exception:  # noqa: S112 - tokenizers raises bare Exception; the longer form is tried next
            continue
    return text.encode()


def companions(
    name: str,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    tokenizer: Any,
    architecture: Architecture,
    licence: bytes,
) -> dict[str, bytes]:
    """File name → content; `config` and `generation` are the source's JSON objects, `licence` is empty if the
    source has none.
    """
    special = special_tokens(tokenizer, architecture, generation.get("pad_token_id", config.get("pad_token_id")))
    kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in _CONFIG_NOISE}
    kept |= {"bos_token_id": architecture.bos_token_id, "eos_token_id": _ids(architecture)}
    sampling = {key: value for key, value in generation.items() if not key.startswith("_") and key not in _CONFIG_NOISE}
    sampling |= {"bos_token_id": architecture.bos_token_id, "eos_token_id": _ids(architecture)}
    if "pad_token" in special:  # what pads a batch is what its mask is read from
        sampling["pad_token_id"] = tokenizer.convert_tokens_to_ids(special["pad_token"])
    tokenizer_config = {
        **special,
        "clean_up_tokenization_spaces": bool(getattr(tokenizer, "clean_up_tokenization_spaces", False)),
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": architecture.max_position,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "config.json": canonical_json(kept),
        "generation_config.json": canonical_json(sampling),
        "tokenizer.json": portable_tokenizer(compact_tokenizer(tokenizer)),
        "tokenizer_config.json": canonical_json(tokenizer_config),
        "special_tokens_map.json": canonical_json(special),
        "LICENSE": licence or _notice(name),
        "README.md": _card(name, architecture),
    }
    template = chat_template(tokenizer)
    return files | {"chat_template.jinja": portable_template(template).encode()} if template else files


def special_tokens(tokenizer: Any, architecture: Architecture, pad: Any = None) -> dict[str, str]:
    """Role → text; an end token that is none of the model's is replaced, and where the tokenizer has no token for
    padding, that is the one with the id `pad`, or else the end token.
    """
    found = {role: str(getattr(tokenizer, role)) for role in _SPECIAL if getattr(tokenizer, role, None) is not None}
    ends = architecture.eos_token_ids
    if ends and tokenizer.convert_tokens_to_ids(found.get("eos_token", "")) not in ends:
        token = tokenizer.convert_ids_to_tokens(ends[0])
        if token is not None:
            found["eos_token"] = token
    if "pad_token" not in found and type(pad) is int and 0 <= pad < len(tokenizer):
        found["pad_token"] = tokenizer.convert_ids_to_tokens(pad)
    if "pad_token" not in found and "eos_token" in found:
        found["pad_token"] = found["eos_token"]
    return found


def chat_template(tokenizer: Any) -> str | None:
    """The template of a tokenizer; of several, the default one."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), None)
    return template or None


def source_config(config: Any) -> dict[str, Any]:
    """A configuration that exists only in memory (GGUF) as a config.json that transformers 4 and 5 both read."""
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    rope = plain.pop("rope_parameters", None)
    if rope:
        everywhere = dict(rope.get("full_attention", rope))
        plain["rope_theta"] = everywhere.pop("rope_theta", 10000.0)
        plain["rope_scaling"] = everywhere if everywhere.get("rope_type", "default") != "default" else None
        if "sliding_attention" in rope:
            plain["rope_local_base_freq"] = rope["sliding_attention"].get("rope_theta", 10000.0)
    return plain


def read_licence(folder: Path) -> bytes:
    """The licence file of a model folder, or nothing."""
    for name in LICENCE_NAMES:
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    return b""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if the file does not exist, InputError if it is no object."""
    from edge_svd.files import read_json

    if not path.is_file():
        return {}
    value = read_json(path, "file")
    if not isinstance(value, dict):
        raise InputError(f"The file {path} must hold a JSON object.")
    return value


def _ids(architecture: Architecture) -> Any:
    ends = list(architecture.eos_token_ids)
    return None if not ends else ends[0] if len(ends) == 1 else ends


def _notice(name: str) -> bytes:
    return (
        f"The weights derive from the model {name}. Its source carried no licence file;\n"
        "the licence stated where that model is published applies to this copy as well.\n"
    ).encode()


def _card(name: str, a: Architecture) -> bytes:
    return (
        f"# {name}, compressed by edge-svd\n\n"
        f"A {a.family} decoder of {a.num_layers} layers, hidden size {a.hidden_size} and {a.vocab_size} tokens, "
        f"for onnxruntime. "
        "`edge_svd.json` names the source model, its digest, the plan and the digest of every file; "
        "`measurements.json` holds what was measured.\n\n"
        "Run it with `edge-svd run`, or with any tool that reads Optimum's decoder graphs or "
        "onnxruntime-genai's folders. "
        "The licence of the source model is in `LICENSE`.\n"
    ).encode()
