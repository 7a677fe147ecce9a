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
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.correction import replaced
from edge_svd.planner.generators import SiteContext
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey, context_of
from edge_svd.progress import step
from edge_svd.quantize.rows import dequantise_rows, round_rows
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZES = (0.70, 0.76, 0.82, 0.87, 0.91, 0.94, 0.97, 0.985)
"""Shares of the all-int8 bundle for the plans of different sizes."""

EQUAL_SHARE = 0.82
EQUAL_PLANS = 10
SPREAD = 1.2
"""Standard deviation of the logarithm of the random price distortions, one a matrix type and one a matrix."""


def distorted(prices: Survey, seed: int) -> Survey:
    """The price list with low-rank prices multiplied by random factors; losses, and so predictions, stay true."""
    rng = np.random.default_rng(seed)
    kinds = {site.type: math.exp(rng.normal(0, SPREAD)) for site in prices.sites}
    changed = {}
    for site in prices.sites:
        own = kinds[site.type] * math.exp(rng.normal(0, SPREAD / 2))
        changed[site.name] = tuple(
            replace(c, score=c.score * own) if c.format.kind == "low-rank" else c for c in prices.candidates[site.name]
        )
    return replace(prices, candidates=changed)


class Rebuilder:
    """Weights of any plan, from one decomposition a matrix."""

    def __init__(self, opened: OpenedModel, contexts: dict[str, SiteContext]) -> None:
        self.opened, self.contexts = opened, contexts

    def weights(self, plan: Plan) -> dict[str, torch.Tensor]:
        """The matrices as they ship, dequantised, fp32."""
        found = {}
        for name, choice in plan.sites.items():
            if choice.format.kind == "low-rank":
                parts = low_rank_parts(self.contexts[name], choice.format)
                found[name] = sum(
                    (parts[f"b{bits}"].float() * parts[f"s{bits}"].float()) @ parts[f"a{bits}"].float()
                    for bits in (8, 16)
                    if f"b{bits}" in parts
                )
            else:
                weight = self.opened.model.get_submodule(name).weight.detach()
                found[name] = dequantise_rows(*round_rows(weight, 8 if choice.format.kind == "int8" else 16))
        if self.opened.architecture.tied_embeddings:
            found["lm_head"] = found["model.embed_tokens"]
        return found


def slim(context: SiteContext) -> SiteContext:
    """Keep the factors and their table in fp32 and drop the metrics, so that all matrices fit into memory at once."""
    table, f = context.components, context.factorization
    vars(context).pop("c_in", None), vars(context).pop("c_out", None), vars(context).pop("w", None)
    vars(context)["factorization"] = replace(f, b=f.b.float(), a=f.a.float())
    vars(context)["components"] = table
    return context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=8)
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
    jobs += [(f"distorted {seed}", distorted(prices, seed), equal) for seed in range(EQUAL_PLANS)]
    contexts: dict[str, SiteContext] = {}
    with step("Decomposing") as tick, torch.no_grad():
        inner: list[Site] = [site for site in prices.sites if site.type not in ("embedding", "lm_head")]
        for number, site in enumerate(inner):
            tick(number, len(inner))
            weight = opened.model.get_submodule(site.name).weight.detach()
            context = context_of(site, weight, opened.architecture, statistics, planning.method, planning.allocation)
            contexts[site.name] = slim(context)
    rebuilder = Rebuilder(opened, contexts)
    reference = open_model(options.model).model
    ids = opened.tokenizer(read_text(options.text), add_special_tokens=False, verbose=False).input_ids
    rows: list[dict[str, Any]] = []
    for label, table, target in jobs:
        plan = run_plan(opened, statistics, table, planning, target)
        predicted = sum(true_loss(prices, name, choice.format) for name, choice in plan.sites.items())
        with torch.no_grad(), replaced(opened.model, rebuilder.weights(plan)):
            loss = model_loss(opened.model, ids, windows=options.windows, reference=reference)
        rows.append({"plan": label, "bytes": plan.file_bytes, "predicted": predicted, "measured": loss.kl})
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
