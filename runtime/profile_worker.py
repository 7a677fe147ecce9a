"""The process behind `bench --profile` that runs the bundle: resident bytes stage by stage, decoding at two depths."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.errors import EdgeSvdError
from edge_svd.runtime.kernel_worker import undisturbed
from edge_svd.runtime.memory import anonymous_bytes, file_bytes, mapped_bytes, release_code_pages
from edge_svd.runtime.schema import WEIGHTS_NAME
from edge_svd.runtime.session import Session
from edge_svd.runtime.tokenizer import load_tokenizer

_STEPS, _ROUNDS = 24, 3
_SHALLOW, _PROMPT = 32, 512


def resident() -> int:
    """Resident bytes now, without code that a session gives back; 0 where there is no /proc."""
    release_code_pages()
    return (anonymous_bytes() or 0) + (file_bytes() or 0)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Returns {"process_bytes", "tokenizer_bytes", "session_bytes" (without mapped weights and the cache, which is
    full), "shallow_s" and "deep_s" (seconds a token), "shallow" and "deep" (cached tokens there), "prompt_s" (seconds
    of a "prompt" of so many tokens), "context", "scales_given_back" (to the system: kernels do not read them)}."""
    bundle = open_bundle(Path(request["bundle"]))
    process = resident()
    tokenizer = load_tokenizer(bundle)
    after_tokenizer = resident()
    context = int(request["context"])
    session = Session(bundle, context=context, threads=int(request["threads"]))
    tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, context).tolist()
    session.prefill(tokens[:_SHALLOW], chunk=_SHALLOW)
    shallow, deep = [], []
    last = context - _STEPS - 1
    for _ in range(_ROUNDS):
        shallow += _decode(session, _SHALLOW)
    session.truncate(_SHALLOW)
    session.prefill(tokens[_SHALLOW:last], chunk=_SHALLOW)
    for _ in range(_ROUNDS):
        deep += _decode(session, last)
    session.prefill(tokens[session.position :])
    scales = session.handed_over[-1] if session.handed_over else None
    cache = sum(buffer.nbytes for buffer in session.cache.values())
    held = resident() - mapped_bytes(bundle.path / WEIGHTS_NAME) - after_tokenizer - cache
    prompt = min(_PROMPT, context // 2)
    reading = []
    for _ in range(_ROUNDS):
        session.truncate()
        started = time.perf_counter()
        session.prefill(tokens[:prompt])
        reading.append(time.perf_counter() - started)
    return {
        "process_bytes": process,
        "tokenizer_bytes": after_tokenizer - process,
        "session_bytes": held,
        "shallow_s": undisturbed(shallow),
        "deep_s": undisturbed(deep),
        "shallow": _SHALLOW + _STEPS // 2,
        "deep": last + _STEPS // 2,
        "prompt": prompt,
        "prompt_s": min(reading),
        "context": context,
        "scales_given_back": bool(scales and scales.dropped),
    }


def _decode(session: Session, start: int) -> list[float]:
    """Seconds of each of a run of steps behind the first `start` cached tokens."""
    session.truncate(start)
    token, times = 1, []
    for _ in range(_STEPS):
        started = time.perf_counter()
        token = int(np.argmax(session.step(token)))
        times.append(time.perf_counter() - started)
    return times


def main() -> int:
    try:
        answer = measure(json.loads(sys.argv[1]))
    except EdgeSvdError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
