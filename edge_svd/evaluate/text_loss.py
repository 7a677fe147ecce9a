"""Perplexity of a model or a bundle on a text, and its KL divergence to a reference model, window by window."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge_svd.errors import Failure
from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.score import Score, ScoringSession, cut_windows, negative_log_likelihood, perplexity

BLOCK = 64
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TextLoss:
    """Perplexity over `tokens` predictions; `kl` is KL(reference ‖ target) over the same positions, nats per token."""

    score: Score
    kl: float | None

    def to_json(self) -> dict[str, float | int]:
        result: dict[str, float | int] = {
            "perplexity": self.score.perplexity,
            "nll": self.score.nll,
            "tokens": self.score.tokens,
        }
        return result if self.kl is None else result | {"kl_to_reference": self.kl}


class KlMeter:
    """Sums KL(reference ‖ target) over the predicting positions of every window it is shown."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference
        self.total = 0.0
        self.positions = 0

    def __call__(self, ids: Array, logits: Array) -> None:
        """ids int64 [window], logits float32 [window, vocabulary] of the target."""
        expected = model_logits(self.reference, ids)
        for start in range(0, len(ids) - 1, BLOCK):
            rows = slice(start, min(start + BLOCK, len(ids) - 1))
            p = torch.log_softmax(torch.from_numpy(expected[rows]), dim=-1)
            q = torch.log_softmax(torch.from_numpy(np.array(logits[rows], dtype=np.float32)), dim=-1)
            self.total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
            self.positions += rows.stop - rows.start

    @property
    def mean(self) -> float:
        return self.total / self.positions


def model_logits(model: Any, ids: Array) -> Array:
    """float32 [window, vocabulary] of a transformers model; Failure if not finite."""
    with torch.inference_mode():
        tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(model.device)
        logits = model(input_ids=tokens, use_cache=False).logits[0].float().cpu()
    if not torch.isfinite(logits.sum()):
        raise Failure("The model's logits hold NaN or Inf on this text.")
    return np.asarray(logits.numpy())


def bundle_loss(
    bundle: Bundle | ScoringSession,
    ids: Sequence[int],
    *,
    window: int = 512,
    windows: int = 64,
    reference: Any = None,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> TextLoss:
    """Score a bundle through onnxruntime; with a reference model also its KL. Errors as `runtime.score.perplexity`."""
    meter = KlMeter(reference) if reference is not None else None
    done = 0

    def seen(row: Array, logits: Array) -> None:
        nonlocal done
        done += 1
        progress(done)
        if meter is not None:
            meter(row, logits)

    score = perplexity(bundle, ids, window=window, windows=windows, threads=threads, on_window=seen)
    return TextLoss(score, meter.mean if meter is not None else None)


def model_loss(
    model: Any,
    ids: Sequence[int],
    *,
    window: int = 512,
    windows: int = 64,
    reference: Any = None,
    progress: Callable[[int], None] = lambda done: None,
) -> TextLoss:
    """The same for a transformers model (dense, or a loaded checkpoint)."""
    meter = KlMeter(reference) if reference is not None else None
    parts = cut_windows(ids, window, windows)
    total = 0.0
    for done, row in enumerate(parts, start=1):
        logits = model_logits(model, row)
        total += float(negative_log_likelihood(logits[:-1], row[1:]).sum())
        if meter is not None:
            meter(row, logits)
        progress(done)
    tokens = len(parts) * (window - 1)
    nll = total / tokens
    return TextLoss(Score(nll, tokens, math.exp(min(nll, 700.0))), meter.mean if meter is not None else None)
