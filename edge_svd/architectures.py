"""What edge-svd knows of a decoder: an independent, JSON-able description, and the list of its matrices.

Everything that export and the planner need is here, so that neither imports torch or transformers.
`architecture_of` reads a transformers configuration object (of version 4 or 5) and refuses whatever this
description cannot express.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_type_hints

from edge_svd import learned
from edge_svd.errors import InputError
from edge_svd.layouts import HEAD, Layout, layout_of
from edge_svd.rotary import GLOBAL, LOCAL, NO_ROTARY, rotary_of

SUPPORTED = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"),
    *("granite", "olmo2", "gpt2", "opt"),
)
"""transformers' model_type of every decoder that can be described."""

SITE_TYPES = ("embedding", "q", "k", "v", "o", "qkv", "gate", "up", "gate_up", "down", "rotation", "lm_head")
PER_HEAD, WHOLE = "head", "whole"
"""What a norm of queries and of keys spans: each head for itself, or all of them together."""

_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_ACTIVATIONS |= {"gelu": "gelu", "relu": "relu"}
_GEMMA = ("gemma", "gemma2", "gemma3_text")
_QK_NORM = {"qwen3": PER_HEAD, "gemma3_text": PER_HEAD, "olmo2": WHOLE}
_SLIDING = ("qwen2", "qwen3", "gemma2", "gemma3_text", "smollm3")


@dataclass(frozen=True)
class Architecture:
    """A decoder of the Llama kind, or of GPT-2's; norms have effective weights, rotary pairs are (i, i + rotary_dim /
    2).
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    norm_eps: float
    activation: str
    attention_scale: float
    attention_softcap: float
    logit_softcap: float
    embedding_multiplier: float
    qk_norm: str
    fused_qkv: bool
    fused_gate_up: bool
    tied_embeddings: bool
    layer_windows: tuple[int, ...]
    layer_ropes: tuple[str, ...]
    rotary_dim: int
    rope_scale: float
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    biased: tuple[str, ...] = ()
    """Site types that add a bias, in the order of SITE_TYPES."""
    norms_before: bool = True
    """Whether attention and MLP read a norm of the residual stream, not the stream itself."""
    norms_after: bool = False
    """Whether what they give passes a norm before it is added."""
    residual_multiplier: float = 1.0
    """Factor on what they add."""
    logit_divisor: float = 1.0
    """What the head's output is divided by, before any softcap."""
    layer_norm: bool = False
    """Whether norms are LayerNorm, with a mean that is taken off and a bias that is added, not RMSNorm."""
    gated: bool = True
    """Whether the MLP multiplies what `up` gives with an activated gate; without one, it activates what `up` gives."""
    learned_positions: bool = False
    """Whether a row of a table is added to every token's embedding, the row of its position below `max_position`."""
    head_rotation: bool = False
    """Whether the last norm's output passes a matrix before the head, which is then tied (`edge_svd.rotation`)."""

    @property
    def layout(self) -> Layout:
        """The names of its modules."""
        return layout_of(self.family)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists. What only rotated models have is left out for all others."""
        values = dataclasses.asdict(self)
        if not self.head_rotation:
            del values["head_rotation"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, value: Any) -> Architecture:
        """Strict inverse of `to_json`: every field, no other, of the right type and in range; InputError otherwise."""
        if not isinstance(value, Mapping):
            raise InputError("An architecture must be a JSON object.")
        hints = get_type_hints(cls)
        value = {"head_rotation": False, **value}
        if set(value) != set(hints):
            odd = ", ".join(sorted(map(str, set(value) ^ set(hints))))
            raise InputError(f"An architecture lacks, or has unknown, fields: {odd}.")
        read = {key: _read(key, value[key], hint) for key, hint in hints.items()}
        architecture = cls(**read)
        _check(architecture)
        return architecture


@dataclass(frozen=True)
class Site:
    """One matrix of the model, W [m out, n in]; the embedding is [vocab, hidden]."""

    name: str
    type: str
    layer: int
    shape: tuple[int, int]
    input: str
    tied_to: str
    bias: bool


class HasSites(Protocol):
    """A description that lists its matrices itself, as an encoder's does."""

    @property
    def sites(self) -> tuple[Site, ...]: ...


def sites_of(architecture: Architecture | HasSites) -> tuple[Site, ...]:
    """Every matrix in forward order, the embedding first and the head last; a tied head points to the embedding."""
    if not isinstance(architecture, Architecture):
        return architecture.sites
    a = architecture
    q, kv, mlp = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim, a.intermediate_size
    attention = {"qkv": q + 2 * kv} if a.fused_qkv else {"q": q, "k": kv, "v": kv}
    inner = {"gate_up": 2 * mlp} if a.fused_gate_up else {"gate": mlp, "up": mlp} if a.gated else {"up": mlp}
    names = a.layout
    sites = [Site(names.embedding, "embedding", -1, (a.vocab_size, a.hidden_size), "tokens", "", False)]
    for layer in range(a.num_layers):
        rows = [(kind, m, a.hidden_size, "attention") for kind, m in attention.items()]
        rows += [("o", a.hidden_size, q, "attention_output")]
        rows += [(kind, m, a.hidden_size, "mlp") for kind, m in inner.items()]
        rows += [("down", a.hidden_size, mlp, "mlp_inner")]
        for kind, m, n, source in rows:
            read = f"{names.layer(layer)}.{source}"
            sites.append(Site(names.part(layer, kind), kind, layer, (m, n), read, "", kind in a.biased))
    if a.head_rotation:
        sites.append(Site(names.rotation, "rotation", -1, (a.hidden_size, a.hidden_size), "last_norm", "", False))
    tied_to = names.embedding if a.tied_embeddings else ""
    sites.append(Site(HEAD, "lm_head", -1, (a.vocab_size, a.hidden_size), "head", tied_to, "lm_head" in a.biased))
    return tuple(sites)


def norms_of(architecture: Architecture) -> dict[str, int]:
    """Name → length of every norm's weight and, of a LayerNorm, bias, under transformers' names, in forward order."""
    a = architecture
    norms: dict[str, int] = {}
    heads = {"q_norm": a.num_heads, "k_norm": a.num_kv_heads} if a.qk_norm else {}
    for layer in range(a.num_layers):
        widths: dict[str, int] = {}
        if a.norms_before:
            widths["before_attention"] = a.hidden_size
        widths |= {part: a.head_dim * (count if a.qk_norm == WHOLE else 1) for part, count in heads.items()}
        places = (("after_attention", a.norms_after), ("before_mlp", a.norms_before), ("after_mlp", a.norms_after))
        widths |= {part: a.hidden_size for part, there in places if there}
        norms |= {a.layout.part(layer, part): width for part, width in widths.items()}
    norms[a.layout.final_norm] = a.hidden_size
    tensors = ("weight", "bias") if a.layer_norm else ("weight",)
    return {f"{name}.{tensor}": width for name, width in norms.items() for tensor in tensors}


def cache_scale(layer: int, part: str) -> str:
    """Name of the scales of an int8 cache, float32 [num_kv_heads * head_dim]; part: "key" or "value"."""
    return f"cache.{layer}.{part}.scale"


def architecture_of(config: Any) -> Architecture:
    """Describe a transformers configuration; InputError, naming the architecture, if that is not possible."""
    family = str(getattr(config, "model_type", "") or type(config).__name__)
    if family not in SUPPORTED:
        named = getattr(config, "architectures", None)
        label = f"{family} ({named[0]})" if named else family
        raise InputError(f"The architecture {label} is not supported; supported are {', '.join(SUPPORTED)}.")
    heads = int(config.num_attention_heads)
    of_gpt2 = family in learned.FAMILIES
    own = None if of_gpt2 else getattr(config, "head_dim", None)
    head_dim = int(own or config.hidden_size // heads)
    layers = int(config.num_hidden_layers)
    if of_gpt2:
        learned.refuse_variants(config, family)
        rope = replace(NO_ROTARY, max_position=int(config.max_position_embeddings))
    else:
        rope = rotary_of(config, family, head_dim)
    sizes = learned.sizes(config, family) if of_gpt2 else _sizes(config, family)
    max_position = rope.max_position
    if family == "gemma3_text" and getattr(config, "attn_logit_softcapping", None):
        raise _refuse(family, "attn_logit_softcapping", "transformers itself ignores it")
    if getattr(config, "use_bidirectional_attention", None):
        raise _refuse(family, "use_bidirectional_attention", "only causal decoders are")
    eos = config.eos_token_id
    architecture = Architecture(
        family=family,
        hidden_size=int(config.hidden_size),
        num_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
        vocab_size=int(config.vocab_size),
        max_position=max_position,
        activation=_activation(config, family),
        attention_scale=_attention_scale(config, family, head_dim),
        attention_softcap=float(getattr(config, "attn_logit_softcapping", None) or 0.0) if family == "gemma2" else 0.0,
        logit_softcap=float(getattr(config, "final_logit_softcapping", None) or 0.0) if family in _GEMMA[1:] else 0.0,
        embedding_multiplier=_embedding_multiplier(config, family),
        qk_norm=_QK_NORM.get(family, ""),
        fused_gate_up=family == "phi3",
        tied_embeddings=bool(config.tie_word_embeddings),
        layer_windows=tuple(window if window < max_position else 0 for window in _windows(config, family, layers)),
        layer_ropes=_layer_ropes(config, family, layers),
        rotary_dim=rope.dim,
        rope_scale=rope.scale,
        bos_token_id=config.bos_token_id,
        eos_token_ids=()
        if eos is None
        else (int(eos),)
        if isinstance(eos, int)
        else tuple(int(token) for token in eos),
        **sizes,
        norms_before=family != "olmo2",
        norms_after=family in ("gemma2", "gemma3_text", "olmo2"),
        residual_multiplier=float(config.residual_multiplier) if family == "granite" else 1.0,
        logit_divisor=float(config.logits_scaling) if family == "granite" else 1.0,
        layer_norm=of_gpt2,
        gated=not of_gpt2,
        learned_positions=of_gpt2,
    )
    _check(architecture)
    return architecture


def _sizes(config: Any, family: str) -> dict[str, Any]:
    return {
        "intermediate_size": int(config.intermediate_size),
        "num_kv_heads": int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        "norm_eps": float(config.rms_norm_eps),
        "fused_qkv": family == "phi3",
        "biased": _biased(config, family),
    }


def _attention_scale(config: Any, family: str, head_dim: int) -> float:
    if family == "granite":
        return float(config.attention_multiplier)
    scalar = float(config.query_pre_attn_scalar) if family in ("gemma2", "gemma3_text") else float(head_dim)
    return float(scalar**-0.5)


def _embedding_multiplier(config: Any, family: str) -> float:
    if family == "granite":
        return float(config.embedding_multiplier)
    return _as_float32(math.sqrt(config.hidden_size)) if family in _GEMMA else 1.0


def _activation(config: Any, family: str) -> str:
    if (
        family == "gemma"
    ):  # released Gemma configs say "gelu" in hidden_act and mean the tanh form, as transformers computes it
        name = getattr(config, "hidden_activation", None) or "gelu_pytorch_tanh"
    elif family in learned.FAMILIES:
        name = config.activation_function
    else:
        name = config.hidden_activation if family in _GEMMA else config.hidden_act
    if name not in _ACTIVATIONS:
        raise _refuse(family, f"the activation {name!r}", f"{' and '.join(dict.fromkeys(_ACTIVATIONS.values()))} are")
    return _ACTIVATIONS[name]


def _windows(config: Any, family: str, layers: int) -> list[int]:
    window = int(getattr(config, "sliding_window", None) or 0)
    if family in ("mistral", "phi3"):
        return [window] * layers
    if family not in _SLIDING or not getattr(config, "use_sliding_window", family in _GEMMA):
        return [0] * layers
    return [window if kind == "sliding_attention" else 0 for kind in config.layer_types]


def _layer_ropes(config: Any, family: str, layers: int) -> tuple[str, ...]:
    if family == "gemma3_text":
        return tuple(LOCAL if kind == "sliding_attention" else GLOBAL for kind in config.layer_types)
    if family == "smollm3":
        return tuple(GLOBAL if used else "" for used in config.no_rope_layers)
    if family in learned.FAMILIES:
        return ("",) * layers
    return (GLOBAL,) * layers


def _biased(config: Any, family: str) -> tuple[str, ...]:
    if family == "qwen2":
        return ("q", "k", "v")
    attention = (
        ("q", "k", "v", "o") if family not in ("mistral", "phi3") and getattr(config, "attention_bias", False) else ()
    )
    has_mlp = family in ("llama", "smollm3", "granite") and getattr(config, "mlp_bias", False)
    mlp = ("gate", "up", "down") if has_mlp else ()
    return attention + mlp


def _refuse(family: str, what: str, why: str) -> InputError:
    return InputError(f"This {family} model uses {what}, which is not supported ({why}).")


def _as_float32(value: float) -> float:
    """The multiplier as transformers holds it in a float32 model."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


def _read(key: str, value: Any, hint: Any) -> Any:
    """One JSON value checked against the annotation of its field."""
    name = str(hint)
    fail = InputError(f"The architecture's field {key} has an impossible value: {value!r:.80}.")
    if "tuple" in name:
        item = str if "str" in name else int
        if not isinstance(value, (list, tuple)) or any(type(part) is not item for part in value):
            raise fail
        return tuple(value)
    if hint is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise fail
        return float(value)
    if value is None and "None" in name:
        return None
    expected = hint if isinstance(hint, type) else int
    if type(value) is not expected:
        raise fail
    return value


def _check(a: Architecture) -> None:
    """Ranges and the agreements between fields; InputError naming the first that fails."""
    counts = (
        "hidden_size",
        "intermediate_size",
        "num_layers",
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "vocab_size",
        "max_position",
    )
    tokens = [*a.eos_token_ids, *([a.bos_token_id] if a.bos_token_id is not None else [])]
    parts = a.layout.parts
    rules = {
        "family": a.family in SUPPORTED,
        **{key: 0 < getattr(a, key) < 2**31 for key in counts},
        "num_kv_heads ": a.num_heads % max(a.num_kv_heads, 1) == 0,
        "norm_eps": 0 <= a.norm_eps < 1,
        "activation": a.activation in _ACTIVATIONS.values(),
        "attention_scale": a.attention_scale > 0,
        "attention_softcap": a.attention_softcap >= 0,
        "logit_softcap": a.logit_softcap >= 0,
        "embedding_multiplier": a.embedding_multiplier > 0,
        "qk_norm": a.qk_norm in ("", PER_HEAD, WHOLE),
        "norms_before": a.norms_before == ("before_attention" in parts),
        "norms_after": a.norms_after == ("after_attention" in parts),
        "residual_multiplier": a.residual_multiplier > 0,
        "logit_divisor": a.logit_divisor > 0 and (a.logit_divisor == 1 or "lm_head" not in a.biased),
        "layer_windows": len(a.layer_windows) == a.num_layers and min(a.layer_windows, default=-1) >= 0,
        "layer_ropes": len(a.layer_ropes) == a.num_layers and set(a.layer_ropes) <= {GLOBAL, LOCAL, ""},
        "rotary_dim": (0 < a.rotary_dim or not any(a.layer_ropes))
        and 0 <= a.rotary_dim <= a.head_dim
        and a.rotary_dim % 2 == 0,
        "learned_positions": a.learned_positions == bool(a.layout.positions),
        "head_rotation": a.tied_embeddings or not a.head_rotation,
        "gated": a.gated or not a.fused_gate_up,
        "rope_scale": a.rope_scale > 0,
        "bos_token_id or eos_token_ids": all(0 <= token < a.vocab_size for token in tokens),
        "biased": set(a.biased) <= set(SITE_TYPES) - {"embedding", "rotation"} and len(set(a.biased)) == len(a.biased),
    }
    for key, holds in rules.items():
        if not holds:
            value = getattr(a, key.split()[0])
            raise InputError(f"The architecture's field {key.split()[0]} has an impossible value: {value!r:.80}.")
