"""An int8 KV cache: its scales, and what rounding keys and values to it loses.

Every channel of every key and value head has one scale, which the attention kernel multiplies with. Keys are cached
behind their rotation, which turns a pair of channels into each other. A pair that turns all the way within a window
shows the largest value of both; one that turns slowly is still to turn further, so both take the scale of its largest
length. Scales are made on the held-out calibration windows; the loss is measured there, in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save

from edge_svd.architectures import Architecture, cache_scale
from edge_svd.calibrate.statistics import Statistics
from edge_svd.errors import Failure, InputError
from edge_svd.files import atomic_write
from edge_svd.formats import INT8_LIMIT
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import BATCH, HALF_WINDOWS, HeldOutKl

FILE = "kv-cache-1.safetensors"
"""Beside the statistics; the number is the version of what this file computes."""

_LOSS = "loss"
_LEAST = 1e-6

Change = Callable[[str, int, torch.Tensor], torch.Tensor]
"""(part, layer, keys or values [batch, heads, tokens, head_dim]) → what is cached."""


@dataclass(frozen=True)
class RoundedCache:
    """`scales`: name (`architectures.cache_scale`) → float32 [num_kv_heads * head_dim]; `loss`: nats per token."""

    scales: dict[str, torch.Tensor]
    loss: float


def rounded_cache(opened: OpenedModel, statistics: Statistics) -> RoundedCache:
    """Scales and loss for a dense model, kept beside the statistics.

    Raises Failure if keys or values are not finite.
    """
    file = statistics.path / FILE
    if file.exists():
        try:
            found = load(file.read_bytes())
            return RoundedCache({name: t for name, t in found.items() if name != _LOSS}, float(found[_LOSS]))
        except (KeyError, ValueError, OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read ({error}); delete it.") from None
    model, architecture, windows = opened.model, opened.architecture, statistics.held_out()
    scales = cache_scales(model, architecture, opened.rotary(), windows)
    # Half windows in fp32, as for a single matrix: what bfloat16 adds would drown it.
    half = windows[:HALF_WINDOWS, : windows.shape[1] // 2] if windows.shape[1] > 1 else windows
    kl = HeldOutKl(model, half, architecture)
    kl.cache = lambda: changed_cache(rounding(architecture, scales))
    result = RoundedCache(scales, kl.measure())
    atomic_write(file, save({**scales, _LOSS: torch.tensor(result.loss, dtype=torch.float64)}))
    return result


def cache_scales(
    model: Any, architecture: Architecture, rotary: Mapping[str, NDArray[np.float32]], windows: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Name → float32 [num_kv_heads * head_dim], so that 127 of them reach the largest value on the windows; `rotary`:
    key of `Architecture.layer_ropes` → inverse frequencies [rotary_dim / 2]."""
    a = architecture
    largest: dict[str, torch.Tensor] = {}
    slow = {key: torch.from_numpy(table) * windows.shape[1] < 2 * math.pi for key, table in rotary.items()}

    def watch(part: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        size = x.abs()
        if part == "key" and a.layer_ropes[layer]:
            half = a.rotary_dim // 2
            first, second = x[..., :half], x[..., half : 2 * half]
            pairs = torch.hypot(first, second)
            turning = slow[a.layer_ropes[layer]]
            sides = [torch.where(turning, pairs, side.abs()) for side in (first, second)]
            size = torch.cat([*sides, size[..., 2 * half :]], dim=-1)
        found = size.amax(dim=(0, 2)).float().reshape(-1)
        name = cache_scale(layer, part)
        largest[name] = torch.maximum(largest[name], found) if name in largest else found
        return x

    body = model.get_submodule(a.layout.body)
    with torch.inference_mode():
        for ids in windows.split(BATCH):
            body(input_ids=ids, past_key_values=changed_cache(watch), use_cache=True)
    for name, found in largest.items():
        if not torch.isfinite(found).all():
            raise Failure(f"Keys or values of the calibration windows are NaN or Inf ({name}).")
    return {name: (found / INT8_LIMIT).clamp_min(_LEAST).clone() for name, found in sorted(largest.items())}


def rounding(architecture: Architecture, scales: dict[str, torch.Tensor]) -> Change:
    """Keys and values as an int8 cache holds them."""
    shape = (1, architecture.num_kv_heads, 1, architecture.head_dim)

    def rounded(part: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        scale = scales[cache_scale(layer, part)].reshape(shape)
        return ((x.float() / scale).round().clamp(-INT8_LIMIT - 1, INT8_LIMIT) * scale).to(x.dtype)

    return rounded


def changed_cache(change: Change) -> Any:
    """A transformers cache that keeps what `change` makes of keys and values."""
    from transformers import DynamicCache

    class Changed(DynamicCache):  # type: ignore[misc, unused-ignore]
        def update(self, keys: Any, values: Any, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            keys, values = change("key", layer_idx, keys), change("value", layer_idx, values)
            return super().update(keys, values, layer_idx, *args, **kwargs)

    return Changed()
