"""Is the plan from all candidates as good as the best single technique at the same bytes? Measured on exported bundles.

    python benchmarks/dominance.py MODEL --calibration TEXT … --text TEXT … [--sizes MB,…] [--rivals 2] [--out FOLDER]

At every size, the plan from all candidates stands against the techniques that alone promise the least KL there: each
family of `--candidates` (the solver still chooses rank, bits and block of every matrix), and every one of their formats
given to all matrices alike. All are compressed, exported, and compared with the dense model on the texts: KL, and
perplexity over all texts together. What is finished lies in OUT and is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import edge_svd.compress
from edge_svd.architectures import Site
from edge_svd.calibrate.statistics import Statistics
from edge_svd.errors import BudgetError
from edge_svd.evaluate.text_loss import bundle_loss
from edge_svd.export import export_bundle
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import load_tokenizer
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZES = "48,52,57,63,70,80,90,105,120,137,145"
WITHIN = 0.003
"""By how much of its perplexity a plan may lie behind a single technique."""


def uniform(prices: Survey) -> Iterator[tuple[str, Survey]]:
    """Every format that all matrices but the vocabulary's tables can have, those keeping its family's choice."""
    inner = [site.name for site in prices.sites if site.type not in ("embedding", "lm_head")]
    for fmt in sorted({c.format for name in inner for c in prices.candidates[name]}, key=str):
        if fmt.factored or fmt.block and fmt.kind != "blocks":
            continue
        chosen = {name: tuple(c for c in prices.candidates[name] if c.format == fmt) for name in inner}
        if all(chosen.values()):
            tables = {
                site.name: tuple(c for c in prices.candidates[site.name] if c.format.family == fmt.family)
                for site in prices.sites
                if site.name not in chosen
            }
            label = " ".join(str(part) for part in (fmt.kind, fmt.bits or "", fmt.block or "", "zero" * fmt.zero))
            yield f"uniform {label.strip()}", replace(prices, candidates=chosen | tables)


def remembered() -> None:
    """Make every matrix once in every format, whatever plans it appears in."""
    made: dict[tuple[Any, ...], Any] = {}
    make = edge_svd.compress.site_arrays

    def site_arrays(opened: OpenedModel, site: Site, plan: Plan, statistics: Statistics) -> Any:
        key = site.name, plan.sites[site.name].format.stored
        if key not in made:
            made[key] = make(opened, site, plan, statistics)
        return made[key]

    edge_svd.compress.site_arrays = site_arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True, action="append")
    parser.add_argument("--text", type=Path, required=True, action="append")
    parser.add_argument("--sizes", default=SIZES, help="megabytes")
    parser.add_argument("--rivals", type=int, default=2, help="single techniques measured at every size")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, of each text")
    parser.add_argument("--out", type=Path, default=Path("out/dominance"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    opened = open_model(options.model)
    statistics, _ = run_calibration(opened, Calibration(tuple(options.calibration)), extras=())
    planning = Planning()
    prices = run_survey(opened, statistics, planning)
    singles = [(name, run_survey(opened, statistics, replace(planning, candidates=name))) for name in planning.families]
    singles += list(uniform(prices))
    remembered()

    def measured(plan: Plan) -> dict[str, float]:
        checkpoint, bundle = options.out / "checkpoint", options.out / "bundle"
        edge_svd.compress.compress(opened, plan, statistics, checkpoint, force=True)
        export_bundle(checkpoint, bundle, context=plan.context, force=True)
        found = open_bundle(bundle)
        losses = []
        for text in options.text:
            ids = load_tokenizer(found).encode(read_text(text))
            losses.append(bundle_loss(found, ids, windows=options.windows, reference=opened.model, threads=2))
        size = sum(file.stat().st_size for file in bundle.iterdir())
        for folder in (checkpoint, bundle):
            shutil.rmtree(folder)
        return {
            "bytes": size,
            "predicted": plan.kl,
            "kl": sum(float(loss.kl or 0.0) for loss in losses) / len(losses),
            "nll": sum(loss.score.nll for loss in losses) / len(losses),
        }

    def kept(megabytes: str, label: str, plan: Plan) -> dict[str, Any]:
        file = options.out / f"{megabytes}-{label.replace(' ', '-')}.json"
        if not file.exists():
            file.write_text(json.dumps({"target": float(megabytes), "plan": label, **measured(plan)}))
        row = dict(json.loads(file.read_text()))
        print("{target:>6.1f} {plan:<24}{bytes:>12}{predicted:>10.4f}{kl:>10.4f}{nll:>10.4f}".format(**row), flush=True)
        return row

    rows, behind = [], []
    for megabytes in options.sizes.split(","):
        target = round(float(megabytes) * 1e6)
        ours = kept(megabytes, "all", run_plan(opened, statistics, prices, planning, target))
        rows.append(ours)
        plans = []
        for label, own in singles:
            try:
                plans.append((label, run_plan(opened, statistics, own, planning, target)))
            except BudgetError:
                continue
        for label, plan in sorted(plans, key=lambda made: made[1].kl)[: options.rivals]:
            row = kept(megabytes, label, plan)
            rows.append(row)
            if row["kl"] < ours["kl"] or ours["nll"] - row["nll"] > math.log1p(WITHIN):
                behind.append(f"{megabytes} MB: {label}")
    print("behind a single technique: " + ("; ".join(behind) or "nowhere"))
    results = Path(__file__).parent / "results" / f"dominance-{today()}.json"
    results.write_text(
        json.dumps({"machine": describe(), "date": today(), "rows": rows, "behind": behind}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
