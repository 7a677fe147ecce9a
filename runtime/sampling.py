"""Choosing the next token from logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edge_svd.runtime.errors import InputError

Logits = np.ndarray[Any, np.dtype[np.float32]]
# Sorting a whole vocabulary costs as much as half a decode step, and nearly always a few hundred tokens carry the mass.
_FIRST_LOOK = 512


class Sampler:
    """Greedy at temperature 0; otherwise softmax(logits / temperature), cut to the smallest set with mass ≥ top_p."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0) -> None:
        """InputError on a temperature that is negative or not finite, a top_p outside (0, 1], a negative seed."""
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"The temperature must be 0 or more, not {temperature}.")
        if not 0 < top_p <= 1:
            raise InputError(f"top-p must be above 0 and at most 1, not {top_p}.")
        if seed < 0:
            raise InputError(f"The seed must be 0 or more, not {seed}.")
        self.temperature = temperature
        self.top_p = top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: Logits) -> int:
        """A token id from finite float32 [vocab]; equal logits go to the lowest id when greedy."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        shifted = logits.astype(np.float64)
        shifted -= shifted.max()
        with np.errstate(over="ignore"):
            shifted /= self.temperature
        probabilities = np.exp(shifted)
        probabilities /= probabilities.sum()
        if self.top_p == 1:
            return self._draw(probabilities)
        candidates = nucleus(probabilities, self.top_p)
        return int(candidates[self._draw(probabilities[candidates])])

    def _draw(self, weights: np.ndarray[Any, Any]) -> int:
        cumulative = np.cumsum(weights)
        return int(
            min(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"), len(weights) - 1)
        )


def nucleus(probabilities: np.ndarray[Any, Any], top_p: float) -> np.ndarray[Any, Any]:
    """Indices of the fewest most probable tokens whose mass reaches top_p, most probable first.

    Ties go to the lower index.
    """
    count = min(_FIRST_LOOK, len(probabilities))
    while True:
        if count < len(probabilities):
            threshold = np.partition(probabilities, -count)[-count]
            candidates = np.flatnonzero(probabilities >= threshold)
        else:
            candidates = np.arange(len(probabilities))
        candidates = candidates[np.argsort(-probabilities[candidates], kind="stable")]
        mass = np.cumsum(probabilities[candidates])
        if mass[-1] >= top_p or len(candidates) == len(probabilities):
            return candidates[: int(np.searchsorted(mass, top_p, side="left")) + 1]
        count = len(probabilities)
