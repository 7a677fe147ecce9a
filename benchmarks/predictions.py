"""Does the planner's predicted KL come true? Many plans of one model, half of them of one size, put to the test.

    python benchmarks/predictions.py MODEL --calibration TEXT --text TEXT [--windows 8]

Plans differ in size, allocation, candidates, and, for the half of equal size, in random distortions of the prices, so
that the planner makes different mistakes at the same bytes. Each plan's rounded matrices, as `compress` would write
them, are put into the torch model and its KL to the dense model is measured on the text. Prints the table and the rank
correlations.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from edge_svd.architectures import Site
from edge_svd.compress import low_rank_parts
from edge_svd.evaluate.text_loss import model_loss
from edge_svd.formats import PIVOTED, SiteFormat
from edge_svd.models import OpenedModel, open_model
from edge_svd.parallel import side_by_side
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import replaced
from edge_svd.planner.generators import SiteContext
from edge_svd.planner.generators.pivoted import rounded
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.planner.views import context_of
from edge_svd.progress import step
from edge_svd.quantize.rows import dequantise_rows, round_rows
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZES = (0.70, 0.76, 0.82, 0.87, 0.91, 0.94, 0.97, 0.985)
"""Shares of the all-int8 bundle for the plans of different sizes."""

EQUAL_SHARE = 0.82
SPREADS = tuple(round(0.1 * step, 1) for step in range(1, 17))
"""Standard deviations of the logarithm of the random price distortions, one a matrix type and one a matrix: from plans
next to the best one to plans that nobody would make."""


def distorted(prices: Survey, spread: float, seed: int) -> Survey:
    """The price list with factored prices multiplied by random factors; losses, and so predictions, stay true."""
    rng = np.random.default_rng(seed)
    kinds = {site.type: math.exp(rng.normal(0, spread)) for site in prices.sites}
    changed = {}
    for site in prices.sites:
        own = kinds[site.type] * math.exp(rng.normal(0, spread / 2))
        changed[site.name] = tuple(
            replace(c, score=c.score * own) if c.format.factored else c for c in prices.candidates[site.name]
        )
    return replace(prices, candidates=changed)


class Rebuilder:
    """Weights of any plan, from one decomposition a matrix."""

    def __init__(self, opened: OpenedModel, contexts: dict[str, SiteContext]) -> None:
        self.opened, self.contexts = opened, contexts

    def weights(self, plan: Plan) -> dict[str, torch.Tensor]:
        """The matrices as they ship, dequantised, fp32."""
        names = list(plan.sites)
        made = side_by_side(lambda name: self.matrix(name, plan.sites[name].format), names)
        found = dict(zip(names, made, strict=True))
        if self.opened.architecture.tied_embeddings:
            found["lm_head"] = found["model.embed_tokens"]
        return found

    def matrix(self, name: str, fmt: SiteFormat) -> torch.Tensor:
        """One of them."""
        if fmt.kind in PIVOTED:
            matrix = rounded(self.contexts[name], fmt).matrix()
            slim(self.contexts[name])
            return matrix
        if fmt.kind == "low-rank":
            parts = low_rank_parts(self.contexts[name], fmt)
            return sum(
                (parts[f"b{bits}"].float() * parts[f"s{bits}"].float()) @ parts[f"a{bits}"].float()
                for bits in (8, 16)
                if f"b{bits}" in parts
            )
        weight = self.opened.model.get_submodule(name).weight.detach()
        return dequantise_rows(*round_rows(weight, 8 if fmt.kind == "int8" else 16))


def slim(context: SiteContext) -> SiteContext:
    """Keep the factors and their table in fp32 and drop the metrics, so that all matrices fit into memory at once."""
    table, f = context.components, context.factorization
    for metric in ("c_in", "c_out", "damped_in", "damped_out", "w"):
        vars(context).pop(metric, None)
    vars(context)["factorization"] = replace(f, b=f.b.float(), a=f.a.float())
    vars(context)["components"] = table
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out/predictions"), help="rows are kept here: a run continues")
    options = parser.parse_args()
    opened = open_model(options.model)
    statistics, _ = run_calibration(opened, Calibration((options.calibration,)))
    planning = Planning()
    prices = run_survey(opened, statistics, planning)
    whole = run_plan(
        opened, statistics, run_survey(opened, statistics, replace(planning, candidates="int8")), planning, 10**12
    )
    jobs: list[tuple[str, Survey, int]] = [(f"{share:.3f}", prices, int(share * whole.file_bytes)) for share in SIZES]
    equal = int(EQUAL_SHARE * whole.file_bytes)
    jobs += [(f"distorted {s:.1f}", distorted(prices, s, seed), equal) for seed, s in enumerate(SPREADS)]
    contexts: dict[str, SiteContext] = {}
    with step("Decomposing") as tick, torch.no_grad():
        inner: list[Site] = [site for site in prices.sites if site.type not in ("embedding", "lm_head")]

        def decomposed(site: Site) -> SiteContext:
            weight = opened.model.get_submodule(site.name).weight.detach()
            with torch.no_grad():
                return slim(
                    context_of(site, weight, opened.architecture, statistics, planning.method, planning.allocation)
                )

        for number, context in enumerate(side_by_side(decomposed, inner)):
            tick(number, len(inner))
            contexts[inner[number].name] = context
    rebuilder = Rebuilder(opened, contexts)
    reference = open_model(options.model).model
    ids = opened.tokenizer(read_text(options.text), add_special_tokens=False, verbose=False).input_ids
    rows: list[dict[str, Any]] = []
    kept = options.out / f"{statistics.key['model'][:16]}-{options.windows}"
    kept.mkdir(parents=True, exist_ok=True)
    for label, table, target in jobs:
        if (kept / f"{label}.json").exists():
            rows.append(json.loads((kept / f"{label}.json").read_text()))
            continue
        plan = run_plan(opened, statistics, table, planning, target)
        predicted = sum(true_loss(prices, name, choice.format) for name, choice in plan.sites.items())
        with torch.no_grad(), replaced(opened.model, rebuilder.weights(plan)):
            loss = model_loss(opened.model, ids, windows=options.windows, reference=reference)
        rows.append({"plan": label, "bytes": plan.file_bytes, "predicted": predicted, "measured": loss.kl})
        (kept / f"{label}.json").write_text(json.dumps(rows[-1]))
        print(f"{label:<14}{plan.file_bytes:>12}{predicted:>10.4f}{loss.kl:>10.4f}", flush=True)
    report = summary(rows)
    print(json.dumps(report))
    results = Path(__file__).parent / "results" / f"predictions-{today()}.json"
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"machine": describe(), "date": today(), "rows": rows, **report}, indent=1) + "\n")


def true_loss(prices: Survey, name: str, fmt: Any) -> float:
    """The undistorted prediction of one choice."""
    candidate: Candidate = next(c for c in prices.candidates[name] if c.format == fmt)
    return candidate.loss


def summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Rank correlation over all plans and over those of equal size; median log error after one fitted constant."""
    predicted = np.array([row["predicted"] for row in rows])
    measured = np.array([row["measured"] for row in rows])
    same = np.array([row["plan"].startswith("distorted") for row in rows])
    ratio = np.log(predicted / measured)
    return {
        "spearman_all": float(spearmanr(predicted, measured).statistic),
        "spearman_equal_size": float(spearmanr(predicted[same], measured[same]).statistic),
        "median_log_error_after_constant": float(np.median(np.abs(ratio - np.median(ratio)))),
        "constant": float(np.exp(-np.median(ratio))),
    }


if __name__ == "__main__":
    main()
