"""The tiny decoder of conftest in plain numpy, one loop a rule (llama's attention with half-split rotary, no norms)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def forward(weights: dict[str, Array], ids: list[int], *, layers: int, heads: int, kv_heads: int) -> Array:
    """Logits [len(ids), vocab] in float64."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    hidden = w["embedding"][ids]
    count = len(ids)
    for layer in range(layers):
        q = rotate((hidden @ w[f"q.{layer}"]).reshape(count, heads, -1), w["cos"], w["sin"])
        k = rotate((hidden @ w[f"k.{layer}"]).reshape(count, kv_heads, -1), w["cos"], w["sin"])
        v = (hidden @ w[f"v.{layer}"]).reshape(count, kv_heads, -1)
        out = np.zeros_like(q)
        for head in range(heads):
            shared = head // (heads // kv_heads)
            scores = q[:, head] @ k[:, shared].T / np.sqrt(q.shape[-1])
            scores[np.triu_indices(count, 1)] = -np.inf
            out[:, head] = softmax(scores) @ v[:, shared]
        hidden = hidden + out.reshape(count, -1) @ w[f"o.{layer}"]
    return hidden @ w["head"]


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    c, s = cos[: len(x), None], sin[: len(x), None]
    return np.concatenate([x[..., :half] * c - x[..., half:] * s, x[..., half:] * c + x[..., :half] * s], axis=-1)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
