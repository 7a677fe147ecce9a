"""Speed and memory of a bundle, measured in a fresh process so that nothing of the caller counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from edge_svd.runtime import errors
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.session import DEFAULT_CHUNK, DEFAULT_CONTEXT

_START = (
    "import os, runpy, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "runpy.run_module('edge_svd.runtime.' + sys.argv.pop(1), run_name='__main__')"
)


def bench(
    bundle: Path | str,
    *,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    threads: int = 2,
    context: int | None = None,
    capacity: int | None = None,
    chunk: int = DEFAULT_CHUNK,
    spinning: bool = True,
    arena: bool = True,
) -> dict[str, Any]:
    """Measure a bundle in a fresh Python process.

    The prompt is prefilled in chunks, then `new_tokens` are decoded greedily. With `context` the cache is filled before
    decoding so that it ends with that many tokens; without, decoding follows the prompt and the cache is filled
    afterwards to `capacity`, by default min(2048, the model's), so that the peaks always include a full context.
    Returns {"prefill_tokens_per_s", "decode_tokens_per_s", "peak_rss_bytes", "peak_anonymous_bytes" (both None off
    Linux), "load_s" (checks, tokenizer and session), "file_bytes", "prompt_tokens", "new_tokens", "threads",
    "context"}. InputError on counts that do not fit, Failure if the process dies.
    """
    for name, value in (
        ("prompt tokens", prompt_tokens),
        ("new tokens", new_tokens),
        ("threads", threads),
        ("prompt chunk", chunk),
    ):
        if value < 1:
            raise InputError(f"The number of {name} must be at least 1, not {value}.")
    opened = open_bundle(bundle)
    limit = opened.manifest.decoder.max_context
    total = (capacity or min(DEFAULT_CONTEXT, limit)) if context is None else context
    if context is None and capacity is None:
        total = max(total, min(prompt_tokens + new_tokens, limit))
    if not prompt_tokens + new_tokens <= total <= limit:
        raise InputError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones need a context between "
            f"{prompt_tokens + new_tokens} "
            f"and the model's {limit} tokens, not {total}."
        )
    request = {
        "bundle": str(Path(bundle).absolute()),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": threads,
        "context": total,
        "fill_first": context is not None,
        "chunk": chunk,
        "spinning": spinning,
        "arena": arena,
    }
    return fresh_process("bench_worker", request)


def fresh_process(worker: str, request: dict[str, Any]) -> dict[str, Any]:
    """What a worker module of this package prints for a request, in a Python process of its own.

    Raises the error that the worker reports, Failure if it dies.
    """
    # The new process finds modules where this one does: the current folder may hold another copy of the package.
    command = [sys.executable, "-P", "-c", _START, os.pathsep.join(sys.path), worker, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failure(f"The measuring process ended with code {done.returncode} ({last[:300]}).") from None
    if "error" in answer:
        raise getattr(errors, answer["error"], Failure)(answer["message"])
    return dict(answer)
