"""The process that `bench` measures: `python -m edge_svd.runtime.bench_worker JSON` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.errors import EdgeSvdError
from edge_svd.runtime.memory import PeakAnonymous, peak_rss_bytes
from edge_svd.runtime.session import Session
from edge_svd.runtime.tokenizer import load_tokenizer

_WARM_UP = 16


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, prefill, decode and fill the cache as `bench` describes."""
    prompt, new, context, chunk = (int(request[key]) for key in ("prompt_tokens", "new_tokens", "context", "chunk"))
    with PeakAnonymous() as anonymous:
        started = time.perf_counter()
        bundle = open_bundle(Path(request["bundle"]))
        # Kept alive as in real use, where the tokenizer counts too.
        tokenizer = load_tokenizer(bundle)
        session = Session(
            bundle,
            context=context,
            threads=request["threads"],
            spinning=request["spinning"],
            arena=request["arena"],
        )
        load_s = time.perf_counter() - started
        anonymous.sample()
        tokens = np.random.default_rng(0).integers(0, tokenizer.vocab_size, context).tolist()
        # The first pass of a process maps pages and fills caches once; users notice it once.
        session.prefill(tokens[: min(_WARM_UP, prompt)], chunk=chunk)
        session.truncate()
        started = time.perf_counter()
        logits = session.prefill(tokens[:prompt], chunk=chunk)
        prefill_s = time.perf_counter() - started
        if request["fill_first"] and prompt < context - new:
            logits = session.prefill(tokens[prompt : context - new], chunk=chunk)
        started = time.perf_counter()
        for _ in range(new):
            logits = session.step(int(np.argmax(logits)))
        decode_s = time.perf_counter() - started
        session.lookup = True  # the peak includes what it takes
        decoded = session.position
        for _ in range(min(_WARM_UP, context - decoded)):
            session.step(tokens[0])
        session.truncate(decoded)
        if session.position < context:
            session.prefill(tokens[session.position :], chunk=chunk)
        anonymous.sample()
        peak = peak_rss_bytes()
    return {
        "prefill_tokens_per_s": prompt / prefill_s,
        "decode_tokens_per_s": new / decode_s,
        "peak_rss_bytes": peak,
        "peak_anonymous_bytes": anonymous.peak,
        "load_s": load_s,
        "file_bytes": bundle.file_bytes,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "threads": request["threads"],
        "context": context,
    }


def main() -> int:
    try:
        answer = measure(json.loads(sys.argv[1]))
    except EdgeSvdError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
