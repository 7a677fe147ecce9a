"""`--calibration self`: the dense model writes the text on which it is then measured.

Rows of a batch are sampled in step, one token a step each, so no window ever holds padding. A row starts with an
opening; when the model ends a text, the row goes on with another opening behind the end token, as documents are
packed when models are trained.
"""

from __future__ import annotations

import copy
import gc
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from edge_svd.architectures import Architecture
from edge_svd.bfloat16 import bfloat16_is_faster
from edge_svd.calibrate.openings import REQUESTS, TEXTS
from edge_svd.companions import chat_template
from edge_svd.errors import InputError

TOP_P = 0.95
"""At temperature 1: the model's own distribution without the tail that makes small models drift into noise."""
TOP_K = 256
"""The nucleus is looked for among this many tokens: sorting a whole vocabulary would cost as much as a layer."""

BATCH = 128
PIECE = 256
"""A window is made of texts of about this length: attention over longer ones would take most of the time, and more
openings make a better mix."""
CACHE_BYTES = 768 * 2**20
"""The batch is lowered until the keys and values of all rows fit."""


def opening_ids(tokenizer: Any, seed: int) -> list[list[int]]:
    """Token ids of every opening, shuffled; user turns go through the chat template where there is one."""
    template = chat_template(tokenizer)
    texts = list(TEXTS)
    for request in REQUESTS:
        if template:
            turn = [{"role": "user", "content": request}]
            texts.append(
                tokenizer.apply_chat_template(turn, chat_template=template, tokenize=False, add_generation_prompt=True)
            )
        else:
            texts.append(request)
    rows = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order if rows[index]]


def write_windows(
    model: Any,
    tokenizer: Any,
    architecture: Architecture,
    *,
    window: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Sample `count` windows of exactly `window` tokens, int64 [count, window].

    `model` is the dense float32 model. `progress(done, total)` is told the tokens written. The same seed, model,
    processor and thread count give the same tokens. InputError if the window is longer than the model's context or
    the logits are not finite.
    """
    if window > architecture.max_position:
        raise InputError(
            f"A calibration window of {window} tokens is longer than the model's context of "
            f"{architecture.max_position}."
        )
    parts = max(1, window // PIECE)
    length = -(-window // parts)
    pieces = _pieces(model, tokenizer, architecture, length, count * parts, seed, progress)
    return pieces.reshape(count, parts * length)[:, :window]


def _pieces(
    model: Any,
    tokenizer: Any,
    architecture: Architecture,
    window: int,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray[Any, np.dtype[np.int64]]:
    openings = opening_ids(tokenizer, seed)
    result = np.empty((count, window), np.int64)
    with torch.inference_mode(), _fast(model) as writer:
        dtype = next(writer.parameters()).dtype
        row_bytes = (
            2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim * window * dtype.itemsize
        )
        batch = max(1, min(BATCH, count, CACHE_BYTES // row_bytes))
        cache = _Buffers(architecture, batch, window, dtype)
        for start in range(0, count, batch):
            rows = min(batch, count - start)
            generator = torch.Generator().manual_seed((seed << 20) + start)
            cache.restart(rows)
            queues = [deque(openings[(start + row) % len(openings)]) for row in range(rows)]
            following = [start + row + count for row in range(rows)]

            def tell(step: int, rows: int = rows, start: int = start) -> None:
                if progress:
                    progress(start * window + rows * step, count * window)

            result[start : start + rows] = _batch(
                writer, architecture, cache, queues, following, openings, window, generator, tell
            )
    del writer, cache
    gc.collect()  # the copy is held by reference cycles of its modules, and a quarter of a gigabyte with it
    return result


def _batch(
    writer: Any,
    architecture: Architecture,
    cache: _Buffers,
    queues: list[deque[int]],
    following: list[int],
    openings: list[list[int]],
    window: int,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One batch of windows; forced tokens come from each row's queue, the others from the model."""
    written = np.empty((len(queues), window), np.int64)
    token = np.array([queue.popleft() for queue in queues], np.int64)
    for step in range(window):
        written[:, step] = token
        if step + 1 == window:
            break
        for row in np.flatnonzero(np.isin(token, architecture.eos_token_ids)):
            if not queues[row]:
                queues[row].extend(openings[following[row] % len(openings)])
                following[row] += len(queues)
        output = writer(
            input_ids=torch.from_numpy(token)[:, None],
            position_ids=torch.full((len(queues), 1), step),
            past_key_values=cache,
            use_cache=True,
        )
        cache.length += 1
        free = [row for row, queue in enumerate(queues) if not queue]
        token = np.array([queue.popleft() if queue else -1 for queue in queues], np.int64)
        if free:
            token[free] = sample(output.logits[free, -1].float(), generator).numpy()
        if step % 16 == 0 or step + 2 == window:
            tell(step + 2)
    return written


def sample(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Nucleus sampling at temperature 1: logits [rows, vocabulary] → int64 [rows]; InputError if they are not
    finite.
    """
    total = torch.logsumexp(logits, -1, keepdim=True)
    if not torch.isfinite(total).all():
        raise InputError("The dense model gives logits that are not finite while it writes calibration text.")
    values, tokens = torch.topk(logits, min(TOP_K, logits.shape[-1]), dim=-1)
    probabilities = torch.exp(values - total)
    before = torch.cumsum(probabilities, -1) - probabilities
    probabilities = torch.where(before < TOP_P, probabilities, torch.zeros_like(probabilities))
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return tokens.gather(-1, drawn)[:, 0]


class _Buffers(Cache):
    """Keys and values of all layers in buffers of full length: a step writes one column and copies nothing."""

    def __init__(self, a: Architecture, batch: int, length: int, dtype: torch.dtype) -> None:
        super().__init__(layers=[])
        shape = (a.num_layers, batch, a.num_kv_heads, length, a.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.length = self.rows = 0

    def restart(self, rows: int) -> None:
        self.length, self.rows = 0, rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store one column [rows, kv_heads, 1, head_dim]; return views of everything up to it."""
        end = self.length + key_states.shape[-2]
        self.keys[layer_idx, : self.rows, :, self.length : end] = key_states
        self.values[layer_idx, : self.rows, :, self.length : end] = value_states
        return self.keys[layer_idx, : self.rows, :, :end], self.values[layer_idx, : self.rows, :, :end]

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.length

    def get_mask_sizes(self, query: Any, *_: Any, **__: Any) -> tuple[int, int]:
        """transformers 4 passes the positions of the query, 5 their number."""
        return self.length + (query if isinstance(query, int) else int(query.shape[0])), 0

    def get_max_cache_shape(self, *_: Any, **__: Any) -> int:
        return int(self.keys.shape[-2])


@contextmanager
def _fast(model: Any) -> Iterator[Any]:
    """The model to sample from: a bfloat16 copy where the processor multiplies those faster, else the model itself.

    Sampling then takes less than half the time. The text is a sample of a distribution that is the dense
    model's up to rounding, and nothing that is measured rests on the copy.
    """
    if not bfloat16_is_faster():
        yield model
        return
    rounded = {
        id(parameter): torch.nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
        for parameter in model.parameters()
    }
    writer = copy.deepcopy(model, rounded)
    del rounded
    yield writer


def writer_key() -> dict[str, Any]:
    """What, besides the model, the shape and the seed, decides the text that is written."""
    return {
        "openings": hashlib.sha256(repr((TEXTS, REQUESTS)).encode()).hexdigest(),
        "sampling": [TOP_P, TOP_K, BATCH, PIECE, CACHE_BYTES],
        "bfloat16": bfloat16_is_faster(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
