"""What edge-svd knows of an encoder: a description apart from the decoders', and the list of its matrices.

It offers what planning and storing read of a decoder's description (`edge_svd.described`); an encoder has no cache, no
head and no rotary tables, and says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_type_hints

from edge_svd.architectures import Site
from edge_svd.errors import InputError

FAMILIES = ("bert",)
"""transformers' model_type of every encoder that can be described."""

POOLINGS = ("mean", "cls")
WORDS = "embeddings.word_embeddings"
POSITIONS = "embeddings.position_embeddings"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


@dataclass(frozen=True)
class Encoder:
    """An encoder with learned positions and norms behind every residual addition.

    Attributes:
        max_position: longest input in tokens, and rows of the table of positions that are kept.
        pooling: "mean" of the last hidden states of all tokens that are no padding, or that of the first ("cls").
    """

    family: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    max_position: int
    type_vocab_size: int
    norm_eps: float
    activation: str
    pooling: str
    pad_token_id: int

    # What the planner asks of every description.
    tied_embeddings: ClassVar[bool] = False
    fused_qkv: ClassVar[bool] = False
    fused_gate_up: ClassVar[bool] = False
    num_kv_heads: ClassVar[int] = 0
    rotary_dim: ClassVar[int] = 0
    layer_ropes: ClassVar[tuple[str, ...]] = ()
    gated: ClassVar[bool] = False
    learned_positions: ClassVar[bool] = False  # those of encoders are int8 rows beside the matrices

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_heads

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every matrix in forward order, the table of words first. Types are those of the decoder's counterparts."""
        h, inner = self.hidden_size, self.intermediate_size
        sites = [Site(WORDS, "embedding", -1, (self.vocab_size, h), "tokens", "", False)]
        for layer in range(self.num_layers):
            at = f"encoder.layer.{layer}"
            rows = [
                (kind, h, h, f"attention.self.{module}", "attention")
                for kind, module in (("q", "query"), ("k", "key"), ("v", "value"))
            ]
            rows += [
                ("o", h, h, "attention.output.dense", "attention_output"),
                ("up", inner, h, "intermediate.dense", "mlp"),
                ("down", h, inner, "output.dense", "mlp_inner"),
            ]
            sites += [
                Site(f"{at}.{module}", kind, layer, (m, n), f"{at}.{source}", "", True)
                for kind, m, n, module, source in rows
            ]
        return tuple(sites)

    @property
    def norms(self) -> tuple[str, ...]:
        """Every LayerNorm in forward order; each has a weight and a bias [hidden]."""
        layers = [f"encoder.layer.{layer}.{part}" for layer in range(self.num_layers) for part in _NORMS]
        return ("embeddings.LayerNorm", *layers)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: getattr(self, key) for key in _fields()}

    @classmethod
    def from_json(cls, value: Any) -> Encoder:
        """Strict inverse of `to_json`; InputError naming the first field that is wrong."""
        fields = _fields()
        if not isinstance(value, Mapping) or set(value) != set(fields):
            raise InputError("The description of an encoder lacks, or has unknown, fields.")
        for key, kind in fields.items():
            number = kind is float and type(value[key]) is int
            if type(value[key]) is not kind and not number:
                raise _impossible(key, value[key])
        read: dict[str, Any] = {key: float(value[key]) if kind is float else value[key] for key, kind in fields.items()}
        encoder = cls(**read)
        encoder.check()
        return encoder

    def check(self) -> None:
        """InputError naming the first field that is out of range."""
        counts = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "vocab_size", "max_position")
        rules = {
            "family": self.family in FAMILIES,
            **{key: 0 < getattr(self, key) < 2**31 for key in (*counts, "type_vocab_size")},
            "num_heads ": self.hidden_size % max(self.num_heads, 1) == 0,
            "norm_eps": math.isfinite(self.norm_eps) and 0 <= self.norm_eps < 1,
            "activation": self.activation in ACTIVATIONS.values(),
            "pooling": self.pooling in POOLINGS,
            "pad_token_id": 0 <= self.pad_token_id < self.vocab_size,
        }
        for key, holds in rules.items():
            if not holds:
                raise _impossible(key.strip(), getattr(self, key.strip()))


_NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def _fields() -> dict[str, type]:
    hints = get_type_hints(Encoder)
    return {field.name: hints[field.name] for field in dataclasses.fields(Encoder)}


def _impossible(key: str, value: Any) -> InputError:
    return InputError(f"The encoder's field {key} has an impossible value: {value!r:.80}.")


def encoder_of(config: Any, *, pooling: str = "mean", max_tokens: int | None = None) -> Encoder:
    """Describe a transformers configuration; InputError, naming what it uses, if that is not possible.

    `max_tokens`: the longest input that the model was made for, where that is shorter than its table of positions.
    """
    family = str(getattr(config, "model_type", ""))
    if family not in FAMILIES:
        raise InputError(f"The encoder {family or 'without a model_type'} is not supported; supported is bert.")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise InputError(f"This {family} model uses relative positions, which are not supported (only absolute are).")
    if getattr(config, "is_decoder", False):
        raise InputError(f"This {family} model is a decoder, which is not supported (only encoders are).")
    if config.hidden_act not in ACTIVATIONS:
        known = ", ".join(dict.fromkeys(ACTIVATIONS))
        raise InputError(f"This {family} model uses the activation {config.hidden_act!r:.40}; supported are {known}.")
    longest = int(config.max_position_embeddings)
    encoder = Encoder(
        family=family,
        hidden_size=int(config.hidden_size),
        intermediate_size=int(config.intermediate_size),
        num_layers=int(config.num_hidden_layers),
        num_heads=int(config.num_attention_heads),
        vocab_size=int(config.vocab_size),
        max_position=min(longest, max_tokens or longest),
        type_vocab_size=int(config.type_vocab_size),
        norm_eps=float(config.layer_norm_eps),
        activation=ACTIVATIONS[config.hidden_act],
        pooling=pooling,
        pad_token_id=int(config.pad_token_id or 0),
    )
    encoder.check()
    return encoder
