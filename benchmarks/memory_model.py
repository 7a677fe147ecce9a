"""Does the predicted peak come true? Plans of different kinds, three contexts, `bench` in fresh processes.

    python benchmarks/memory_model.py MODEL [PLAN.json ...] [--device this-machine] [--contexts 256,2048,8192]
        [--only KIND …] [--kv-cache int8]

Every plan is built with random numbers in place of weights (memory does not depend on them): uniform and random plans
of every kind of format, and the plan files given. Prints predicted and measured peaks and writes
benchmarks/results/memory-model-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stand_in import stand_in

from edge_svd.architectures import Site
from edge_svd.devices import DEFAULT
from edge_svd.files import atomic_write
from edge_svd.formats import ALIGNMENT, SiteFormat
from edge_svd.models import open_model
from edge_svd.planner.plan import Plan
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bench import bench
from edge_svd.steps import EXACT, Planning, setting_of

RESULTS = Path(__file__).parent / "results"
WITHIN_SHARE, WITHIN_BYTES = 0.03, 4_000_000
PROMPT, NEW = 64, 16


def rank(site: Site, share: float) -> int:
    """A rank of about that share of the full one."""
    return max(ALIGNMENT, int(share * min(site.shape)) // ALIGNMENT * ALIGNMENT)


def kinds(seed: int = 0) -> dict[str, Callable[[Site], SiteFormat]]:
    """Name → format of every matrix that is no table."""
    rng = np.random.default_rng(seed)

    def mixed(site: Site) -> SiteFormat:
        share = float(rng.uniform(0.15, 0.6))
        made = [
            SiteFormat("int8"),
            SiteFormat("low-rank", rank(site, share), 0),
            SiteFormat("low-rank", rank(site, share), 16),
            SiteFormat("row-pivoted", rank(site, share)),
            SiteFormat("column-pivoted", rank(site, share)),
            SiteFormat("low-rank", rank(site, share), k4=64),
            SiteFormat("trellis", bits=int(rng.integers(1, 7)), block=int(rng.choice((0, 16, 64)))),
            SiteFormat("blocks", bits=int(rng.choice((4, 8))), block=int(rng.choice((32, 64)))),
            SiteFormat("corrected", 32, bits=4, block=64),
        ]
        return made[int(rng.integers(len(made)))]

    return {
        "int8": lambda site: SiteFormat("int8"),
        "int16": lambda site: SiteFormat("int16"),
        "low rank": lambda site: SiteFormat("low-rank", rank(site, 0.4)),
        "low rank of many ranks": lambda site: SiteFormat("low-rank", rank(site, float(rng.uniform(0.1, 0.6)))),
        "low rank with 16 bits": lambda site: SiteFormat("low-rank", rank(site, 0.3), 16),
        "row-pivoted": lambda site: SiteFormat("row-pivoted", rank(site, 0.4)),
        "column-pivoted": lambda site: SiteFormat("column-pivoted", rank(site, 0.4)),
        "low rank with 4 bits": lambda site: SiteFormat("low-rank", rank(site, 0.2), k4=64),
        "trellis of 3 bits": lambda site: SiteFormat("trellis", bits=3),
        "trellis, narrow blocks": lambda site: SiteFormat("trellis", bits=5, block=16),
        "4-bit blocks": lambda site: SiteFormat("blocks", bits=4, block=64),
        "8-bit blocks of 16": lambda site: SiteFormat("blocks", bits=8, block=16),
        "corrected 4-bit blocks": lambda site: SiteFormat("corrected", 32, bits=4, block=64),
        "a mix": mixed,
        "another mix": mixed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("plans", nargs="*", type=Path)
    parser.add_argument("--device", default=DEFAULT)
    parser.add_argument("--contexts", default="256,2048,8192")
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--only", action="append", help="kinds of plans by name, instead of all")
    parser.add_argument("--kv-cache", default=EXACT)
    options = parser.parse_args()
    opened = open_model(options.model)
    contexts = [int(text) for text in options.contexts.split(",")]
    sites = [site for site in opened.sites if not site.tied_to]
    chosen = {
        name: {site.name: SiteFormat("int8") if site.type in ("embedding", "lm_head") else make(site) for site in sites}
        for name, make in kinds().items()
    }
    chosen = {name: formats for name, formats in chosen.items() if not options.only or name in options.only}
    chosen |= {path.stem: Plan.read(path).formats for path in options.plans}
    rows, suffix = [], "" if options.kv_cache == EXACT else f"-{options.kv_cache}"
    for name, formats in chosen.items():
        folder = Path(tempfile.mkdtemp(prefix="memory-"))
        bundle = stand_in(opened, formats, folder / "bundle", max(contexts), options.kv_cache)
        for context in contexts:
            planning = Planning(
                context=context, prompt_chunk=options.chunk, device=options.device, kv_cache=options.kv_cache
            )
            predicted = setting_of(opened, planning).memory(formats)
            found = bench(bundle, prompt_tokens=PROMPT, new_tokens=NEW, capacity=context, chunk=options.chunk)
            measured = found["peak_rss_bytes"]
            error = predicted.total - measured
            row = {
                "plan": name,
                "context": context,
                "chunk": options.chunk,
                "kv_cache": options.kv_cache,
                "predicted": predicted.total,
                "measured": measured,
                "error": error,
                "within": abs(error) <= max(WITHIN_SHARE * measured, WITHIN_BYTES),
                "parts": dict(predicted.parts),
                "anonymous": found["peak_anonymous_bytes"],
            }
            rows.append(row)
            print(
                f"{name:<24}{context:>6}  predicted {predicted.total / 1e6:7.1f} MB  measured {measured / 1e6:7.1f} MB"
                f"  {error / 1e6:+6.1f} MB {error / measured:+6.1%}{'' if row['within'] else '  OUT'}",
                flush=True,
            )
        shutil.rmtree(folder)
        report = {"date": today(), "machine": describe(), "model": opened.name, "device": options.device, "rows": rows}
        atomic_write(RESULTS / f"memory-model{suffix}-{today()}.json", json.dumps(report, indent=1) + "\n")
    print(f"{sum(row['within'] for row in rows)} of {len(rows)} within 3% or 4 MB")


if __name__ == "__main__":
    main()
