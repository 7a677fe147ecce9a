"""Perplexity of a text through model_scoring.onnx, the graph with the logits of every position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.onnx_session import open_onnx
from edge_svd.runtime.schema import SCORING_NAME

# Rows of logits handled at once, so that temporaries stay a few MB beside a window's logits.
_ROWS = 32

Ids = np.ndarray[Any, np.dtype[np.int64]]
Logits = np.ndarray[Any, np.dtype[np.float32]]
OnWindow = Callable[[Ids, Logits], None]


@dataclass(frozen=True)
class Score:
    """Mean negative log-likelihood in nats per predicted token, how many tokens were predicted, and exp(nll)."""

    nll: float
    tokens: int
    perplexity: float


class ScoringSession:
    """model_scoring.onnx with an empty cache: every call is independent."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, spinning: bool = True, arena: bool = False
    ) -> None:
        """BundleError if the graph is not what the manifest says."""
        _ = bundle.manifest.decoder  # an encoder has no such graph
        self.bundle = bundle
        self._session = open_onnx(bundle, SCORING_NAME, threads=threads, spinning=spinning, arena=arena)
        self._has_positions = any(item.name == "position_ids" for item in self._session.get_inputs())
        self._logits: Logits = np.zeros((0, 0, 0), np.float32)

    def logits(self, ids: Ids) -> Logits:
        """Float32 [batch, sequence, vocab] for int64 [batch, sequence] without padding.

        The result is a buffer that the next call overwrites. InputError on ids outside the vocabulary or a sequence
        beyond the model's context; Failure on logits that are not finite.
        """
        model = self.bundle.manifest.decoder
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        if ids.ndim != 2 or ids.size == 0:
            raise InputError("Scoring needs a non-empty batch of equally long sequences.")
        if ids.min() < 0 or ids.max() >= model.vocab_size:
            raise InputError(f"A token id is outside the model's vocabulary of {model.vocab_size}.")
        batch, length = ids.shape
        if length > model.max_context:
            raise InputError(f"A window of {length} tokens is longer than the model's context of {model.max_context}.")
        if self._logits.shape != (batch, length, model.vocab_size):
            self._logits = np.zeros((batch, length, model.vocab_size), np.float32)
        binding = self._session.io_binding()
        empty = np.zeros((batch, model.num_kv_heads, 0, model.head_dim), model.kv_dtype)
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((batch, length), np.int64))
        if self._has_positions:
            binding.bind_cpu_input("position_ids", np.tile(np.arange(length, dtype=np.int64), (batch, 1)))
        for layer in range(model.num_layers):
            for part in ("key", "value"):
                binding.bind_cpu_input(f"past_key_values.{layer}.{part}", empty)
        binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(self._logits))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise Failure(f"onnxruntime failed while scoring ({str(error).replace(chr(10), ' ')[:300]}).") from None
        for row, block in enumerate(self._logits):
            for start in range(0, length, _ROWS):
                if not np.isfinite(block[start : start + _ROWS]).all():
                    # The position says little: attention multiplies masked values by zero, which spreads a NaN
                    # backwards.
                    raise Failure(
                        f"Logits of sequence {row} of the batch are not finite; the bundle's weights are unusable."
                    )
        return self._logits


def perplexity(
    target: Bundle | ScoringSession,
    ids: Sequence[int],
    *,
    window: int = 512,
    windows: int = 64,
    batch: int = 1,
    threads: int | None = None,
    on_window: OnWindow | None = None,
) -> Score:
    """Score the first `windows` non-overlapping windows of a tokenised text, without BOS, window - 1 predictions each.

    A text with fewer windows is scored as far as it goes. `on_window(ids [window], logits [window, vocab])` sees each
    window in order; the logits are overwritten afterwards. InputError if the text is shorter than one window; Failure
    on non-finite logits.
    """
    parts = cut_windows(ids, window, windows)
    if batch < 1:
        raise InputError(f"The batch must be at least 1, not {batch}.")
    session = target if isinstance(target, ScoringSession) else ScoringSession(target, threads=threads)
    total, tokens, done = 0.0, 0, 0
    for start in range(0, len(parts), batch):
        part = parts[start : start + batch]
        try:
            logits = session.logits(part)
        except Failure as error:
            raise Failure(f"Scoring stopped at window {done} (with batches, the first of its batch): {error}") from None
        for row, block in zip(part, logits, strict=True):
            total += float(negative_log_likelihood(block[:-1], row[1:]).sum())
            tokens += window - 1
            done += 1
            if on_window is not None:
                on_window(row, block)
    nll = total / tokens
    return Score(nll, tokens, math.exp(min(nll, 700.0)))


def cut_windows(ids: Sequence[int], window: int, windows: int) -> Ids:
    """The first `windows` whole non-overlapping windows, int64 [≤ windows, window].

    InputError if there is not even one.
    """
    if window < 2:
        raise InputError(f"The window must be at least 2 tokens, not {window}.")
    if windows < 1:
        raise InputError(f"The number of windows must be at least 1, not {windows}.")
    tokens = np.asarray(ids, dtype=np.int64)
    count = min(len(tokens) // window, windows)
    if count == 0:
        raise InputError(
            f"The text has {len(tokens)} tokens, fewer than one window of {window}; give a longer text or a smaller "
            "window."
        )
    return tokens[: count * window].reshape(count, window)


def negative_log_likelihood(logits: Logits, targets: Ids) -> np.ndarray[Any, np.dtype[np.float64]]:
    """-log softmax(logits)[target] in nats: float32 [n, vocab], int64 [n] → float64 [n]."""
    result = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS]
        chosen = targets[start : start + _ROWS]
        top = rows.max(axis=1)
        sums = np.exp(rows - top[:, None]).sum(axis=1, dtype=np.float64)
        picked = rows[np.arange(len(rows)), chosen].astype(np.float64)
        result[start : start + len(rows)] = np.log(sums) + top.astype(np.float64) - picked
    return result
