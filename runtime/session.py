"""One conversation with a model through onnxruntime.

The KV cache of a layer is one numpy buffer of capacity size, bound as past and as present: GroupQueryAttention then
writes the new keys and values in place and nothing is copied per token. Buffers come from calloc, so pages that no
token reached cost no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime.bundle import Bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.feeds import Feeds
from edge_svd.runtime.handed_over import HandedOver
from edge_svd.runtime.lookup import MOST, guess
from edge_svd.runtime.onnx_session import cut_of, open_onnx
from edge_svd.runtime.schema import (
    COLUMNS,
    EMBEDDED,
    KEYS,
    LAST_KEY,
    MODEL_NAME,
    PLACES,
)

DEFAULT_CONTEXT = 2048
DEFAULT_CHUNK = 128
"""Prompt tokens per pass: large enough for the matrix kernels, small enough that activations stay a few MB."""

SINKS = 4
"""First tokens that are kept when older ones are forgotten: attention rests on them (Xiao et al. 2023, arXiv
2309.17453)."""

Logits = np.ndarray[Any, np.dtype[np.float32]]


class Session:
    """A loaded model and its KV cache (batch 1).

    After `prefill` or `step`, the cache holds `position` tokens and the returned logits, float32 [vocab], predict the
    next one.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        context: int | None = None,
        threads: int | None = None,
        spinning: bool = True,
        arena: bool = True,
        lookup: bool = False,
        disabled_optimizers: Sequence[str] = (),
    ) -> None:
        """Load model.onnx with a cache for `context` tokens (default: min(2048, the model's)).

        `spinning` keeps threads awake between operators: a third faster, more power. `arena` is onnxruntime's pooled
        allocator: without it prompts are a quarter slower, because every pass maps its buffers anew, and the peak of a
        full context is the same. With `lookup`, `step` computes tokens that may follow along with the one it is given,
        guessed from the text so far (`lookup.guess`), and has their logits ready if they do follow: faster where text
        repeats. Logits then differ as they do between prompts read in other chunks: last bits of sums, which rounded
        activations can make more of, so where two tokens are all but equally likely another one may win.

        InputError on a context outside the model's, BundleError if the graph is not what it claims.
        """
        model = bundle.manifest.decoder
        limit = model.max_context
        if context is not None and not 1 <= context <= limit:
            raise InputError(f"The context must be between 1 and the model's {limit} tokens, not {context}.")
        self.bundle = bundle
        self.context = context if context is not None else min(DEFAULT_CONTEXT, limit)
        self.position = 0
        self._vocabulary = model.vocab_size
        self._session = open_onnx(
            bundle,
            MODEL_NAME,
            threads=threads,
            spinning=spinning,
            arena=arena,
            disabled_optimizers=disabled_optimizers,
            decoding=True,
        )
        cut = cut_of(self._session)
        self._rows, self._columns, self._spans = cut.rows, cut.columns, cut.spans
        self.lookup = lookup
        self._first = self._computed = 0
        self._has_positions = any(item.name == "position_ids" for item in self._session.get_inputs())
        # Unread where the graph takes its spans.
        self._mask = np.ones((1, 1 if self._spans else self.context), np.int64)
        self._positions = np.arange(self.context, dtype=np.int64)[None]
        self._ids = np.zeros((1, self.context), np.int64)
        self._logits = np.zeros((1 + MOST if self._columns else 1, self._vocabulary), np.float32)
        self._outputs = [
            onnxruntime.OrtValue.ortvalue_from_numpy(self._logits[None, :rows]) for rows in range(len(self._logits) + 1)
        ]
        self._binding = self._session.io_binding()
        self._feeds = Feeds(self._binding)
        self._bound_rows = -1
        shape = (1, model.num_kv_heads, self.context, model.head_dim)
        self.cache: dict[str, np.ndarray[Any, Any]] = {}
        for layer in range(model.num_layers):
            for part in ("key", "value"):
                # On the CPU an OrtValue made from numpy shares its memory, which is what makes past and present one
                # buffer.
                try:
                    buffer = self.cache[f"{layer}.{part}"] = np.zeros(shape, model.kv_dtype)
                except MemoryError:
                    raise Failure(
                        f"There is not enough memory for a context of {self.context} tokens; use a smaller --context."
                    ) from None
                value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)
                self._binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{part}", value)

    @property
    def tokens(self) -> list[int]:
        """The ids in the cache, oldest first."""
        return [int(token) for token in self._ids[0, : self.position]]

    @property
    def handed_over(self) -> tuple[HandedOver, ...]:
        """What was computed for onnxruntime: unpacked matrices, and scales."""
        found: tuple[HandedOver, ...] = self._session.edge_svd_handed
        return found

    def prefill(self, ids: Sequence[int], *, chunk: int = DEFAULT_CHUNK) -> Logits:
        """Append a prompt to the cache, at most `chunk` tokens a pass; returns the logits after its last token.

        InputError on no tokens, ids outside the vocabulary or more tokens than the context has left (nothing is
        appended then); Failure naming the position if logits are not finite.
        """
        if chunk < 1:
            raise InputError(f"The prompt chunk must be at least 1 token, not {chunk}.")
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.ndim != 1 or tokens.size == 0:
            raise InputError("The prompt is empty; give at least one token.")
        self._check(int(tokens.min()), int(tokens.max()), len(tokens))
        for start in range(0, len(tokens), chunk):
            # Logits are wanted behind the last token alone.
            last = start + chunk >= len(tokens)
            self._run(tokens[start : start + chunk], rows=1 if last or not self._columns else 0)
        return self._row()

    def step(self, token: int) -> Logits:
        """Append one token; returns the logits after it (a view that the next call overwrites).

        Errors as in `prefill`.
        """
        start = self.position
        if start < self._computed and self._ids[0, start] == token:
            self.position += 1
            return self._row()
        tokens = np.array([token], dtype=np.int64)
        self._check(token, token, 1)
        if self.lookup and self._columns:
            self._ids[0, start] = token
            guessed = guess(self._ids[0, : start + 1])[: self.context - start - 1]
            self._run(np.concatenate([tokens, guessed]), rows=1 + len(guessed))
            self.position = start + 1
        else:
            self._run(tokens)
        return self._row()

    def truncate(self, length: int = 0) -> None:
        """Forget all but the first `length` tokens; InputError if the cache holds fewer."""
        if not 0 <= length <= self.position:
            raise InputError(f"The cache holds {self.position} tokens, so it cannot be cut to {length}.")
        self.position = self._computed = length

    def slide(self, *, first: int = SINKS, chunk: int = DEFAULT_CHUNK) -> None:
        """Make room: forget all but the first `first` tokens, at most a quarter of the context, and the latest half.

        What is kept is computed anew, side by side, so that everything is afterwards as if only those tokens had been
        given: exact for every model, rotary or not, and whatever the cache holds. `position` is where they end.
        """
        known = self.tokens
        kept = min(max(first, 0), self.context // 4, self.position)
        latest = known[max(kept, self.position - self.context // 2) :]
        self.truncate(kept)
        if latest:
            self.prefill(latest, chunk=chunk)

    def _check(self, smallest: int, largest: int, count: int) -> None:
        """That `count` tokens fit, whose ids are from `smallest` to `largest`."""
        if smallest < 0 or largest >= self._vocabulary:
            raise InputError(f"A token id is outside the model's vocabulary of {self._vocabulary}.")
        if self.position + count > self.context:
            raise InputError(
                f"The context of {self.context} tokens is full: it holds {self.position} and {count} more were given; "
                f"use a longer --context (the model's limit is {self.bundle.manifest.model.max_context}) or a "
                "shorter text."
            )

    def _row(self) -> Logits:
        """The logits after the last token."""
        row: Logits = self._logits[self.position - self._first]
        return row

    def _run(self, tokens: np.ndarray[Any, Any], rows: int = 1) -> None:
        """Append tokens; the logits after the last `rows` of them are in `_logits` then, the first of them for position
        `_first`."""
        count, start = len(tokens), self.position
        total = start + count
        self._ids[0, start:total] = tokens
        feeds, positions = self._feeds, self._positions[:, start:total]
        feeds.give("input_ids", tokens[None])
        feeds.give("attention_mask", self._mask[:, :total])
        if self._has_positions:
            feeds.give("position_ids", positions)
        if self._spans:
            feeds.give(LAST_KEY, np.array([total - 1], np.int32))
            feeds.give(KEYS, np.array([total], np.int32))
        if PLACES in self._spans:
            feeds.give(PLACES, positions)
        if self._columns:
            feeds.give(COLUMNS, self._positions[0, None, count - rows : count, None])
        if rows != self._bound_rows:
            self._binding.bind_ortvalue_output("logits", self._outputs[rows])
            self._bound_rows = rows
        self._computed = start  # what was there is written over
        try:
            if self._rows is not None:
                feeds.give(EMBEDDED, self._rows(tokens))
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            message = str(error).replace("\n", " ")[:300]
            raise Failure(f"onnxruntime failed at position {start} of the context ({message}).") from None
        logits = self._logits[:rows]
        # NaN is its own minimum and maximum; looking at each number costs twice as much.
        if rows and not (math.isfinite(logits.min()) and math.isfinite(logits.max())):
            raise Failure(f"The logits after position {total - 1} are not finite; the bundle's weights are unusable.")
        self.position = self._computed = total
        self._first = total - rows + 1
