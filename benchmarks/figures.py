"""Figures of the README: dense, all-int8, and fits of int8, 16 bits, low rank and pivots, measured in one run.

    python benchmarks/figures.py --data DIR [--model MODEL] [--out FOLDER]

DIR holds wikitext2_raw.train.txt[.gz] (calibration) and wikitext2_raw.test.txt[.gz] (evaluation). Without --model the
demonstration model is permuted first (benchmarks/permute.py says why). Every row is kept in OUT/rows, so an interrupted
run continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.evaluate.targets import evaluate_target
from edge_svd.fit import fit
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bench import bench
from edge_svd.steps import Calibration, Planning

WINDOWS, KL_WINDOWS = 64, 8


@dataclass(frozen=True)
class Row:
    """One line of the table: a fit, or the dense model where `size` is None."""

    name: str
    size: int | None
    method: str = "io-svd"
    allocation: str = "second-order"
    candidates: str = "int8,int16,low-rank,pivoted"


ROWS = (
    Row("dense fp32 (torch)", None),
    Row("all int8", 160_000_000, candidates="int8"),
    Row("fit 145MB", 145_000_000),
    Row("fit 125MB", 125_000_000),
    Row("fit 115MB", 115_000_000),
    Row("fit 100MB", 100_000_000),
    Row("fit 90MB", 90_000_000),
    Row("two factors only, 115MB", 115_000_000, candidates="int8,int16,low-rank"),
    Row("svd-llm-v2, uniform, 115MB", 115_000_000, method="svd-llm-v2", allocation="uniform", candidates="low-rank"),
)


def text_file(data: Path, name: str) -> Path:
    for suffix in (".txt", ".txt.gz"):
        if (data / f"{name}{suffix}").exists():
            return data / f"{name}{suffix}"
    sys.exit(f"{data} has no {name}.txt or {name}.txt.gz; README.md says where to get the text.")


def dense_row(model: str, test: Path) -> dict[str, Any]:
    loss = evaluate_target(model, test, window=512, windows=WINDOWS)
    worker = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("dense_worker.py")), model],
        capture_output=True,
        text=True,
        check=True,
    )
    return {"perplexity": loss.score.perplexity, "kl": 0.0, **json.loads(worker.stdout.splitlines()[-1])}


def fit_row(row: Row, model: str, train: Path, test: Path, out: Path) -> dict[str, Any]:
    assert row.size is not None
    bundle = out / "bundles" / row.name.replace(" ", "-").replace(",", "")
    started = time.monotonic()
    planning = Planning(row.method, row.allocation, row.candidates)
    if not (bundle / "edge_svd.json").exists():
        fit(model, bundle, row.size, Calibration((str(train),)), planning)
    seconds = time.monotonic() - started
    loss = evaluate_target(str(bundle), test, window=512, windows=WINDOWS)
    divergence = evaluate_target(str(bundle), test, window=512, windows=KL_WINDOWS, reference=model)
    plan = json.loads((bundle / "edge_svd.json").read_bytes())["plan"]
    proof = json.loads((bundle / "measurements.json").read_bytes())["proof"]
    return {
        "bundle": str(bundle),
        "file_bytes": sum(file.stat().st_size for file in bundle.iterdir()),
        "perplexity": loss.score.perplexity,
        "kl": divergence.kl,
        "predicted_kl": plan["predicted"]["kl"],
        "gap": plan["solver"]["gap"],
        "proof": proof,
        "fit_seconds_from_shared_statistics": seconds,
    }


def speed(bundle: str) -> dict[str, Any]:
    """Prompt 64 and 128 new tokens as the rivals are measured, prefill of 512, and the peak with a full context."""
    short = bench(bundle, prompt_tokens=64, new_tokens=128, context=192)
    full = bench(bundle, prompt_tokens=512, new_tokens=128)
    return {
        "decode_tokens_per_s": short["decode_tokens_per_s"],
        "prefill_tokens_per_s": full["prefill_tokens_per_s"],
        "peak_rss_bytes": short["peak_rss_bytes"],
        "peak_rss_bytes_full_context": full["peak_rss_bytes"],
        "load_s": short["load_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--out", type=Path, default=Path("out/figures"))
    parser.add_argument("--rows", type=int, default=len(ROWS), help="only the first ROWS rows")
    options = parser.parse_args()
    train, test = text_file(options.data, "wikitext2_raw.train"), text_file(options.data, "wikitext2_raw.test")
    model = options.model
    if model is None:
        model = str(options.out / "permuted")
        if not Path(model, "config.json").exists():
            subprocess.run(
                [sys.executable, str(Path(__file__).with_name("permute.py")), "smollm2-demo", model], check=True
            )
    (options.out / "rows").mkdir(parents=True, exist_ok=True)
    table = []
    for number, row in enumerate(ROWS[: options.rows]):
        kept = options.out / "rows" / f"{number}.json"
        if not kept.exists():
            result = dense_row(model, test) if row.size is None else fit_row(row, model, train, test, options.out)
            kept.write_text(json.dumps({"name": row.name, "target_bytes": row.size, **result}))
        table.append(json.loads(kept.read_text()))
    # Speeds last and in one go, so that they are taken under the same conditions.
    for entry in table[1:]:
        entry |= speed(entry["bundle"])
    dense = table[0]["perplexity"]
    print("| | MB | perplexity | over dense | KL | predicted KL | decode tok/s | prefill tok/s | peak RSS MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for entry in table:
        predicted = f"{entry['predicted_kl']:.3f}" if "predicted_kl" in entry else ""
        print(
            f"| {entry['name']} | {entry['file_bytes'] / 1e6:.2f} | {entry['perplexity']:.2f} | "
            f"{entry['perplexity'] / dense - 1:+.1%} | {entry['kl']:.4f} | {predicted} | "
            f"{entry['decode_tokens_per_s']:.0f} | {entry['prefill_tokens_per_s']:.0f} | "
            f"{entry['peak_rss_bytes'] / 1e6:.0f} |"
        )
    results = Path(__file__).parent / "results" / f"figures-{today()}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": describe(), "date": today(), "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
