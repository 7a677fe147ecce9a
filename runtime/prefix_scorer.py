"""Continuations scored by a bundle: a context that they share is computed once.

onnxruntime's GroupQueryAttention takes several new tokens behind a past for one sequence only, so continuations follow
each other, each over the context's part of the KV cache. Past and present are one buffer, so nothing is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.likelihood import Ids, Likelihood, kept_length, prefix_of
from edge_svd.runtime.onnx_session import open_onnx
from edge_svd.runtime.schema import SCORING_NAME
from edge_svd.runtime.score import Logits, negative_log_likelihood
from edge_svd.runtime.session import DEFAULT_CHUNK
from edge_svd.runtime.tokenizer import load_tokenizer

# Places of the first KV cache; it grows by doubling, up to the model's context.
_FIRST_CAPACITY = 512


class PrefixScorer:
    """model_scoring.onnx over one KV cache that stays between calls (a `likelihood.Scorer`).

    A context goes through in passes of `chunk` tokens, the last one shorter, and a continuation in passes of its own.
    Kept of the context before are whole passes that are the same, so what a call returns does not depend on the calls
    before it. In passes of other lengths sums differ in their last bits, which activations rounded to int8 make more
    of: a bundle differs from itself then as it differs from its checkpoint, but less.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, chunk: int = DEFAULT_CHUNK) -> None:
        """Load graph and tokenizer; InputError for an encoder, BundleError if the bundle is not what it claims."""
        model = bundle.manifest.decoder
        self.bundle = bundle
        self.tokenizer = load_tokenizer(bundle)
        self._session = open_onnx(bundle, SCORING_NAME, threads=threads, spinning=True, arena=True)
        self._has_positions = any(item.name == "position_ids" for item in self._session.get_inputs())
        self._binding = self._session.io_binding()
        self._logits: Logits = np.zeros((1, chunk, model.vocab_size), np.float32)
        self._context: list[int] = []  # that of the call before, which is in the cache and left the logits `_after`
        self._after: Logits = self._logits[0, 0]
        self._capacity = 0

    @property
    def max_context(self) -> int:
        return self.bundle.manifest.decoder.max_context

    @property
    def prefix_id(self) -> int:
        model = self.bundle.manifest.decoder
        return prefix_of(model.bos_token_id, model.eos_token_ids)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def likelihoods(self, context: Ids, continuations: Sequence[Ids]) -> list[Likelihood]:
        """See `likelihood.Scorer`; InputError on empty ones, ids outside the vocabulary or more than fits."""
        context = list(context)
        self._check(context, continuations)
        self._reserve(len(context) + max(map(len, continuations)) - 1)
        if context != self._context:
            chunk = self._logits.shape[1]
            kept = kept_length(self._context, context, chunk)
            self._context = []
            self._after = self._read(context[kept:], kept, rows=1)[-1].copy()
            self._context = context
        return [self._one(len(context), self._after, np.asarray(ids, np.int64)) for ids in continuations]

    def _one(self, start: int, after: Logits, ids: np.ndarray[Any, np.dtype[np.int64]]) -> Likelihood:
        """A continuation behind the first `start` tokens of the cache, whose last one left the logits `after`."""
        total = float(negative_log_likelihood(after[None], ids[:1])[0])
        greedy = bool(after.argmax() == ids[0])
        chunk = self._logits.shape[1]
        for at in range(0, len(ids) - 1, chunk):
            read = ids[at : min(at + chunk, len(ids) - 1)]
            targets = ids[at + 1 : at + 1 + len(read)]
            rows = self._read(read.tolist(), start + at, rows=len(read))
            total += float(negative_log_likelihood(rows, targets).sum())
            greedy = greedy and bool((rows.argmax(axis=1) == targets).all())
        return Likelihood(-total, greedy)

    def _read(self, tokens: list[int], start: int, *, rows: int) -> Logits:
        """Put tokens behind the first `start` of the cache; logits [rows, vocabulary] after the last `rows` of them,
        which are of one pass."""
        chunk = self._logits.shape[1]
        for at in range(0, len(tokens), chunk):
            part = tokens[at : at + chunk]
            self._pass(part, start + at)
        found: Logits = self._logits[0, len(part) - rows : len(part)]
        if not (math.isfinite(found.min()) and math.isfinite(found.max())):
            raise Failure("The logits are not finite; the bundle's weights are unusable.")
        return found

    def _pass(self, tokens: list[int], start: int) -> None:
        count, binding = len(tokens), self._binding
        ids = np.array([tokens], np.int64)
        positions = np.arange(start, start + count, dtype=np.int64)[None]
        mask = np.ones((1, start + count), np.int64)
        logits = onnxruntime.OrtValue.ortvalue_from_numpy(self._logits[:, :count])
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", mask)
        if self._has_positions:
            binding.bind_cpu_input("position_ids", positions)
        binding.bind_ortvalue_output("logits", logits)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise Failure(f"onnxruntime failed while scoring ({str(error).replace(chr(10), ' ')[:300]}).") from None

    def _check(self, context: list[int], continuations: Sequence[Ids]) -> None:
        model = self.bundle.manifest.decoder
        if not context or not continuations or not all(map(len, continuations)):
            raise InputError("Scoring needs a context and continuations of at least one token each.")
        ids = [*context, *(token for ids in continuations for token in ids)]
        if min(ids) < 0 or max(ids) >= model.vocab_size:
            raise InputError(f"A token id is outside the model's vocabulary of {model.vocab_size}.")
        longest = len(context) + max(map(len, continuations)) - 1
        if longest > model.max_context:
            raise InputError(f"A text of {longest} tokens is longer than the model's context of {model.max_context}.")

    def _reserve(self, length: int) -> None:
        """Room for `length` tokens; a larger cache begins empty."""
        if length <= self._capacity:
            return
        model = self.bundle.manifest.decoder
        capacity = max(self._capacity, min(_FIRST_CAPACITY, model.max_context))
        while capacity < length:
            capacity = min(2 * capacity, model.max_context)
        shape = (1, model.num_kv_heads, capacity, model.head_dim)
        self._context, self._capacity = [], 0
        # The old buffers are given back before the new ones are made.
        self._cache: dict[str, np.ndarray[Any, Any]] = {}
        for layer in range(model.num_layers):
            for part in ("key", "value"):
                try:
                    buffer = self._cache[f"{layer}.{part}"] = np.zeros(shape, model.kv_dtype)
                except MemoryError:
                    raise Failure(f"There is not enough memory for a text of {length} tokens.") from None
                value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
        self._capacity = capacity
