"""Which rotary embeddings can be expressed: one constant table of frequencies a key, and one factor on cos and sin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from edge_svd.errors import InputError

GLOBAL = "global"
LOCAL = "local"

CONSTANT = ("default", "linear", "llama3", "yarn", "longrope")
"""Rotary types whose frequencies do not depend on the length of the input (longrope: within its original context)."""


@dataclass(frozen=True)
class Rotary:
    """Width that is rotated, factor on cos and sin, and the longest context for which the table holds."""

    dim: int
    scale: float
    max_position: int


NO_ROTARY = Rotary(0, 1.0, 0)


def rotary_of(config: Any, family: str, head_dim: int) -> Rotary:
    """Read the rotary part of a transformers configuration (version 4 or 5); InputError if its table is not
    constant.
    """
    parameters = _parameters(config)
    kind = str(parameters.get("rope_type") or parameters.get("type") or "default")
    kind = "longrope" if kind in ("su", "yarn") and "short_factor" in parameters else kind
    if kind not in CONSTANT:
        raise InputError(
            f"This {family} model uses the rotary type {kind!r}, whose frequencies change with the length of "
            f"the input; "
            f"supported are {', '.join(CONSTANT)}."
        )
    partial = parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    if family != "phi3" and partial != 1.0:
        raise InputError(f"This {family} model rotates only part of each head, which is supported for phi3 only.")
    max_position = int(config.max_position_embeddings)
    scale = 1.0
    if kind == "yarn":
        scale = _yarn_scale(parameters)
    elif kind == "longrope":
        original = getattr(config, "original_max_position_embeddings", None) or parameters.get(
            "original_max_position_embeddings"
        )
        original = int(original or max_position)
        scale = _longrope_scale(parameters, max_position, original)
        max_position = min(max_position, original)
    return Rotary(int(head_dim * partial), float(scale), max_position)


def _parameters(config: Any) -> dict[str, Any]:
    """The rotary parameters of the layers with full attention, wherever this version of transformers keeps them."""
    found = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return dict(found.get("full_attention") or {}) if "full_attention" in found else dict(found)


def _yarn_scale(parameters: dict[str, Any]) -> float:
    def magnitude(factor: float, weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    factor, one, every = float(parameters["factor"]), parameters.get("mscale"), parameters.get("mscale_all_dim")
    return magnitude(factor, one) / magnitude(factor, every) if one and every else magnitude(factor)


def _longrope_scale(parameters: dict[str, Any], max_position: int, original: int) -> float:
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    factor = max_position / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
