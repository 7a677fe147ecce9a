"""Where transformers keeps the parts of a decoder: names of modules, family by family.

Everything else speaks of parts (`q`, `down`, the norm before the MLP); only this file knows what a family calls them.
Names of a layer's modules are relative to the layer; a part that a family lacks is never asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
ROTATION = "rotation"
"""Below the last norm: the matrix that its output passes before a tied head, in a rotated model."""

_LAYER = re.compile(r"^(.*?\.)(\d+)\.")


@dataclass(frozen=True)
class Layout:
    """Names of modules: of the model (embedding, table of positions, list of layers, last norm) and of each layer.

    `first_position` is the row of the table that belongs to position 0.
    `parts` are the matrices by type and the norms by place: before and after attention and MLP, of queries and keys.
    """

    embedding: str = EMBEDDING
    positions: str = ""
    first_position: int = 0
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def rotation(self) -> str:
        """The matrix before a tied head, in a rotated model."""
        return f"{self.final_norm}.{ROTATION}"

    @property
    def body(self) -> str:
        """The module that gives the last hidden states: everything but the head."""
        return self.embedding.partition(".")[0]

    def layer(self, number: int) -> str:
        """The module of one layer."""
        return f"{self.layers}.{number}"

    def part(self, number: int, part: str) -> str:
        """The module of one part of a layer; KeyError for one that the family does not have."""
        return f"{self.layers}.{number}.{self.parts[part]}"


_ATTENTION = {kind: f"self_attn.{kind}_proj" for kind in ("q", "k", "v", "o", "qkv")}
_MLP = {kind: f"mlp.{kind}_proj" for kind in ("gate", "up", "gate_up", "down")}
_HEADS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}

_LLAMA = Layout(
    parts={
        **_ATTENTION,
        **_MLP,
        **_HEADS,
        "before_attention": "input_layernorm",
        "before_mlp": "post_attention_layernorm",
    }
)
_AFTER = {"after_attention": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"}
_SANDWICH = replace(_LLAMA, parts={**_LLAMA.parts, **_AFTER, "before_mlp": "pre_feedforward_layernorm"})

LAYOUTS = {
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "gpt2": Layout(
        embedding="transformer.wte",
        positions="transformer.wpe",
        layers="transformer.h",
        final_norm="transformer.ln_f",
        parts={
            "qkv": "attn.c_attn",
            "o": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
            "before_attention": "ln_1",
            "before_mlp": "ln_2",
        },
    ),
    "opt": Layout(
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        first_position=2,
        layers="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        parts={
            **_ATTENTION,
            "o": "self_attn.out_proj",
            "up": "fc1",
            "down": "fc2",
            "before_attention": "self_attn_layer_norm",
            "before_mlp": "final_layer_norm",
        },
    ),
    "olmo2": replace(_LLAMA, parts={**_ATTENTION, **_MLP, **_HEADS, **_AFTER}),
}
"""Family → its names, where they are not Llama's."""


def layout_of(family: str) -> Layout:
    """The names of a family's modules."""
    return LAYOUTS.get(family, _LLAMA)


def layer_of(name: str) -> int | None:
    """The number of the layer that a module or a tensor belongs to, None for one outside the layers."""
    found = _LAYER.match(name)
    return int(found.group(2)) if found else None


def labels(names: Iterable[str]) -> dict[str, str]:
    """Name of a matrix → the short name of its kind: the last part, and what stands before it where two kinds of a
    model end alike (GPT-2's attn.c_proj and mlp.c_proj)."""
    kinds = {name: _LAYER.sub("", name) for name in names}
    ends: dict[str, set[str]] = {}
    for kind in kinds.values():
        ends.setdefault(kind.rpartition(".")[2], set()).add(kind)
    return {name: end if len(ends[end := kind.rpartition(".")[2]]) == 1 else kind for name, kind in kinds.items()}
