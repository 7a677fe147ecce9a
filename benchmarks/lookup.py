"""What prompt lookup gains: answers to questions with it and without it, in turns, in one process.

    python benchmarks/lookup.py BUNDLE PROMPTS.jsonl... [--items 12] [--new-tokens 128] [--threads 2]

A line of a PROMPTS file has a "prompt", a "question", or "turns" of which the first is asked, in the model's chat
template. Every question is answered greedily, twice by each; the faster counts. Times are those of decoding alone.
Prints the table and writes benchmarks/results/lookup-BUNDLE-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from memory_model import RESULTS

from edge_svd.files import atomic_write
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.chat import ChatTemplate
from edge_svd.runtime.session import Session
from edge_svd.runtime.tokenizer import load_tokenizer

CONTEXT = 2048
ROUNDS = 2


def questions(path: Path, items: int) -> list[str]:
    """The first `items` questions of a file."""
    found = []
    for line in path.read_text().splitlines()[:items]:
        row: dict[str, Any] = json.loads(line)
        found.append(str(row.get("prompt") or row.get("question") or row["turns"][0]))
    return found


def answered(session: Session, ids: list[int], count: int, ends: tuple[int, ...]) -> tuple[list[int], float]:
    """(the tokens of a greedy answer, seconds a token after the first)."""
    session.truncate()
    token = int(np.argmax(session.prefill(ids)))
    made = [token]
    started = time.perf_counter()
    while len(made) < count and token not in ends:
        token = int(np.argmax(session.step(token)))
        made.append(token)
    return made, (time.perf_counter() - started) / max(1, len(made) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", nargs="+", type=Path)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    tokenizer, template = load_tokenizer(bundle), ChatTemplate.from_bundle(bundle)
    ends = bundle.manifest.decoder.eos_token_ids
    sessions = {way: Session(bundle, context=CONTEXT, threads=options.threads, lookup=way) for way in (False, True)}
    rows = []
    for path in options.prompts:
        tokens, same, seconds = 0, 0, {False: 0.0, True: 0.0}
        asked = 0
        for question in questions(path, options.items):
            ids = tokenizer.encode(template.render([{"role": "user", "content": question}]))
            if len(ids) + options.new_tokens > CONTEXT:
                continue
            answers: dict[bool, list[int]] = {}
            best = {False: float("inf"), True: float("inf")}
            for _ in range(ROUNDS):
                for way, session in sessions.items():
                    answers[way], took = answered(session, ids, options.new_tokens, ends)
                    best[way] = min(best[way], took)
            asked += 1
            same += answers[False] == answers[True]
            tokens += len(answers[False])
            for way, took in best.items():
                seconds[way] += took * (len(answers[False]) - 1)
        plain, looked = ((tokens - asked) / seconds[way] for way in (False, True))
        rows.append(
            {"prompts": path.stem, "answers": asked, "same": same, "tokens": tokens}
            | {"plain_tokens_per_s": plain, "lookup_tokens_per_s": looked, "ratio": looked / plain}
        )
        print(
            f"{path.stem:16} {asked:3} answers, {same:3} the same   {plain:6.1f} -> {looked:6.1f} tokens/s  "
            f"{looked / plain:.2f}x",
            flush=True,
        )
    result = {"machine": describe(), "date": today(), "bundle": options.bundle.name, "file_bytes": bundle.file_bytes}
    result |= {"threads": options.threads, "new_tokens": options.new_tokens, "rows": rows}
    out = RESULTS / f"lookup-{options.bundle.name}-{today()}.json"
    atomic_write(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
