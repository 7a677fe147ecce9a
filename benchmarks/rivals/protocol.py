"""What every contestant's worker does: `python run_X.py JSON` prints one line of JSON. Needs numpy alone.

A worker script opens its model as a `Decoder` and hands it to `main`; what is measured, and how, is the same for all:

* `speed`: load; the first token after a prompt; the prompt and a long prompt again, warm; greedy decoding.
* `batch`: decoding of several sequences in step.
* `memory`: load, one prompt, decoding, and the peak resident memory of the process, which does nothing else.
* `score`: negative log-likelihood of windows of tokens.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

CONTEXT = 2048
"""Tokens that every contestant's cache has room for, where it takes the room beforehand."""

REPEATS = 3
"""Warm passes over the short prompt, of which the median counts: one takes a tenth of a second."""

_ROWS = 64


@dataclass(frozen=True)
class Request:
    """One measurement.

    `tokens` is an .npy of int64 ids [windows, window]; prompts are the first ids of it, row by row. `options` are the
    contestant's own.
    """

    task: str
    path: str
    tokens: str
    threads: int
    prompt: int = 64
    long: int = 512
    new: int = 128
    batch: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Decoder(Protocol):
    """A loaded model with a cache, for `batch` sequences of equal length."""

    def reset(self) -> None:
        """Empty the cache."""

    def feed(self, ids: Array) -> Array:
        """Append int64 [batch, n] to the cache; float logits [batch, vocabulary] after the last of them."""


class Scorer(Protocol):
    """A loaded model that gives the logits of whole windows."""

    def logits(self, ids: Array) -> Array:
        """Float logits [n, vocabulary] of every position of int64 [n], behind an empty cache."""


class Generator(Protocol):
    """A decoder whose runtime has a greedy loop of its own, which then counts instead of ours."""

    def generate(self, new: int) -> list[int]:
        """The first sequence's next `new` tokens; as many passes through the model, no stopping."""


Open = Callable[[Request], Any]
"""A Scorer for the task `score`, a Decoder for all others; most runtimes are both."""


def greedy(logits: Array) -> Array:
    """Int64 [batch, 1], the likeliest token of each row."""
    return np.asarray(logits).argmax(axis=-1).astype(np.int64).reshape(-1, 1)


def decode(decoder: Decoder, logits: Array, new: int) -> tuple[float, list[int]]:
    """Seconds for `new` greedy steps after `logits`, without stopping, and the first sequence's tokens."""
    generate = getattr(decoder, "generate", None)
    started = time.perf_counter()
    if generate is not None:
        made = list(generate(new))
        return time.perf_counter() - started, made
    made = []
    for _ in range(new):
        token = greedy(logits)
        made.append(int(token[0, 0]))
        logits = decoder.feed(token)
    return time.perf_counter() - started, made


def seconds_of(decoder: Decoder, ids: Array) -> float:
    """Seconds for one prompt behind an empty cache, its first token chosen."""
    decoder.reset()
    started = time.perf_counter()
    greedy(decoder.feed(ids))
    return time.perf_counter() - started


def speed(open_decoder: Open, request: Request) -> dict[str, Any]:
    """Seconds to load and to the first token, prefill and decode in tokens a second, one sequence."""
    ids = prompts(request)
    started = time.perf_counter()
    decoder: Decoder = open_decoder(request)
    loaded = time.perf_counter() - started
    first = seconds_of(decoder, ids[:, : request.prompt])
    short = sorted(seconds_of(decoder, ids[:, : request.prompt]) for _ in range(REPEATS))[REPEATS // 2]
    long = seconds_of(decoder, ids[:, : request.long])
    decoder.reset()
    took, made = decode(decoder, decoder.feed(ids[:, : request.prompt]), request.new)
    return {
        "load_s": loaded,
        "first_token_s": first,
        "prefill_tokens_per_s": request.prompt / short,
        "prefill_long_tokens_per_s": request.long / long,
        "decode_tokens_per_s": request.new / took,
        "made": made[:16],
    }


def batch(open_decoder: Open, request: Request) -> dict[str, Any]:
    """Tokens a second of all sequences of the batch together."""
    ids = prompts(request)[:, : request.prompt]
    decoder: Decoder = open_decoder(request)
    decoder.feed(ids)
    decoder.reset()
    took, _ = decode(decoder, decoder.feed(ids), request.new)
    return {"decode_tokens_per_s": request.batch * request.new / took}


def memory(open_decoder: Open, request: Request) -> dict[str, Any]:
    """Peak resident bytes of this process after load, prompt and decoding."""
    decoder: Decoder = open_decoder(request)
    decode(decoder, decoder.feed(prompts(request)[:, : request.prompt]), request.new)
    return {"peak_rss_bytes": peak_rss_bytes()}


def score(open_decoder: Open, request: Request) -> dict[str, Any]:
    """Mean negative log-likelihood, nats per predicted token, over all windows; ValueError on logits not finite."""
    windows = np.load(request.tokens)
    scorer: Scorer = open_decoder(request)
    total = 0.0
    for row in windows:
        logits = np.asarray(scorer.logits(row))
        if logits.shape[0] != len(row):
            raise ValueError(f"{logits.shape[0]} rows of logits for {len(row)} tokens")
        total += negative_log_likelihood(logits[:-1], row[1:])
    tokens = int(windows.shape[0] * (windows.shape[1] - 1))
    if not np.isfinite(total):
        raise ValueError("logits are not finite")
    return {"nll": total / tokens, "tokens": tokens, "perplexity": float(np.exp(min(total / tokens, 700.0)))}


TASKS: dict[str, Callable[[Open, Request], dict[str, Any]]] = {
    "speed": speed,
    "batch": batch,
    "memory": memory,
    "score": score,
}


def prompts(request: Request) -> Array:
    """Int64 [batch, window]: the first windows of the text, from the beginning again where it has fewer."""
    windows = np.load(request.tokens)
    return np.ascontiguousarray(windows[np.arange(request.batch) % len(windows)].astype(np.int64))


def negative_log_likelihood(logits: Array, targets: Array) -> float:
    """Sum of -log softmax(logits)[target] in nats, in float64: [n, vocabulary], [n]."""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = np.asarray(logits[start : start + _ROWS], np.float64)
        chosen = targets[start : start + len(rows)]
        top = rows.max(axis=1)
        sums = np.exp(rows - top[:, None]).sum(axis=1)
        total += float((np.log(sums) + top - rows[np.arange(len(rows)), chosen]).sum())
    return total


def peak_rss_bytes() -> int:
    """VmHWM of this process; OSError or ValueError where there is no /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/self/status has no VmHWM")


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Of those that are installed here."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(open_decoder: Open, packages: Sequence[str]) -> None:
    """Answer the request in argv; a failure is an answer too: {"error": one line}."""
    request = Request(**json.loads(sys.argv[1]))
    try:
        answer = TASKS[request.task](open_decoder, request)
        answer["versions"] = versions_of(packages)
    except Exception as error:
        message = " ".join(str(error).split())[:300]
        answer = {"error": f"{type(error).__name__}: {message}"}
    # Libraries print too: the answer is the last line.
    sys.stdout.flush()
    print("\n" + json.dumps(answer), flush=True)
