"""Does the planner's predicted KL come true? Many plans of one model, half of them of one size, put to the test.

    python benchmarks/predictions.py MODEL --calibration TEXT … --text TEXT … [--windows 8]

Plans differ in size, in candidates, and, for the half of equal size, in random distortions of the prices, so that the
planner makes different mistakes at the same bytes. Each plan's rounded matrices, as `compress` would write them, are
put into the torch model, every product's inputs are rounded to int8 in blocks as the runtime does, and the KL to the
dense model is measured on the text. Prints the table and the rank correlations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from edge_svd.compress import rounded_blocks, rounded_components, rounded_table
from edge_svd.errors import BudgetError
from edge_svd.evaluate.text_loss import model_loss
from edge_svd.files import canonical_json
from edge_svd.formats import BLOCKED, PIVOTED, SiteFormat
from edge_svd.models import OpenedModel, open_model
from edge_svd.parallel import side_by_side
from edge_svd.planner.activation_probe import rounded_inputs
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.generators import SiteContext, corrected
from edge_svd.planner.generators.pivoted import rounded
from edge_svd.planner.held_out import replaced
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.planner.views import context_of
from edge_svd.quantize.corrected import product
from edge_svd.quantize.rows import dequantise_rows, round_rows
from edge_svd.quantize.trellis import round_trellis
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZES = (0.36, 0.42, 0.48, 0.54, 0.60, 0.66, 0.72, 0.78, 0.84, 0.90, 0.96, 1.02)
"""Shares of the all-int8 bundle for the plans of different sizes."""

EQUAL_SHARE = 0.64
SPREADS = tuple(round(0.15 * step, 2) for step in range(1, 13))
"""Standard deviations of the logarithm of the random price distortions, one a matrix type and one a matrix: from plans
next to the best one to plans that nobody would make."""

MIXES = (
    "trellis",
    "blocks-2,blocks-4,blocks-8",
    "int8,low-rank,blocks-2,blocks-4",
    "int8,pivoted,trellis",
    "int8,blocks-2,blocks-4,corrected",
    "int8,blocks-2,trellis",
)
"""Candidates of further plans of that size."""


def distorted(prices: Survey, spread: float, seed: int) -> Survey:
    """The price list with every matrix's prices multiplied by a random factor; losses, the predictions, stay true."""
    rng = np.random.default_rng(seed)
    kinds = {site.type: math.exp(rng.normal(0, spread)) for site in prices.sites}
    changed = {}
    for site in prices.sites:
        own = kinds[site.type] * math.exp(rng.normal(0, spread / 2))
        changed[site.name] = tuple(replace(c, score=c.score * own) for c in prices.candidates[site.name])
    return replace(prices, candidates=changed)


class Rebuilder:
    """Weights of any plan; every matrix is made once in every format and kept on disk."""

    def __init__(self, opened: OpenedModel, statistics: Any, planning: Planning, kept: Path) -> None:
        self.opened, self.statistics, self.planning, self.kept = opened, statistics, planning, kept
        self.sites = {site.name: site for site in opened.sites}

    def weights(self, plan: Plan) -> dict[str, torch.Tensor]:
        """The matrices as they ship, dequantised, fp32."""
        names = list(plan.sites)
        made = side_by_side(lambda name: self.kept_matrix(name, plan.sites[name].format), names)
        found = dict(zip(names, made, strict=True))
        if self.opened.architecture.tied_embeddings:
            found["lm_head"] = found["model.embed_tokens"]
        return found

    def kept_matrix(self, name: str, fmt: SiteFormat) -> torch.Tensor:
        """One of them, from disk if it was made before."""
        body = replace(fmt, block=0) if fmt.kind not in BLOCKED else fmt
        if body.kind == "table":
            return self.matrix(name, body)
        file = self.kept / f"{name}-{hashlib.sha256(canonical_json(body.to_json())).hexdigest()[:16]}.npy"
        if not file.exists():
            with torch.no_grad():
                np.save(file, self.matrix(name, body).numpy())
        return torch.from_numpy(np.load(file))

    def matrix(self, name: str, fmt: SiteFormat) -> torch.Tensor:
        """One of them, made now."""
        module = self.opened.model.get_submodule(name)
        if fmt.kind in ("int8", "int16"):
            return dequantise_rows(*round_rows(module.weight.detach().float(), 8 if fmt.kind == "int8" else 16))
        architecture, options = self.opened.architecture, self.planning
        site = self.sites[name]
        return made_of(context_of(site, module, architecture, self.statistics, options.method, options.allocation), fmt)


def made_of(context: SiteContext, fmt: SiteFormat) -> torch.Tensor:
    """A matrix whose format looks at the metrics, fp32 [m, n]."""
    w, n = context.weight, context.site.shape[1]
    if fmt.kind in PIVOTED:
        return rounded(context, fmt).matrix()
    if fmt.kind == "low-rank":
        return torch.stack([product(factors) for factors in rounded_components(context, fmt).values()]).sum(0)[:, :n]
    if fmt.kind == "blocks":
        return rounded_blocks(context, fmt).matrix()
    if fmt.kind == "corrected":
        blocked, factors = corrected.rounded(context, fmt)
        return blocked.matrix() + product(factors)
    if fmt.kind == "trellis":
        return round_trellis(w, context.inputs, context.outputs, fmt.bits).matrix()[:, :n].contiguous()
    metric, groups = rounded_table(context, fmt)
    found = torch.empty_like(w)
    for rows, made in groups.values():
        found[rows] = made.matrix()[:, :n]
    return found * metric.columns.float()


def input_blocks(formats: Mapping[str, SiteFormat], opened: OpenedModel) -> dict[str, int]:
    """Module → how many of its inputs share an activation scale."""
    found = {}
    for site in opened.sites:
        fmt = formats[site.tied_to or site.name]
        if site.type != "embedding":
            found[site.name] = fmt.inputs_a_block(site.shape[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True, action="append")
    parser.add_argument("--text", type=Path, required=True, action="append")
    parser.add_argument("--windows", type=int, default=8, help="of each text")
    parser.add_argument("--out", type=Path, default=Path("out/predictions"), help="rows are kept here: a run continues")
    options = parser.parse_args()
    opened = open_model(options.model)
    statistics, _ = run_calibration(opened, Calibration(tuple(options.calibration)))
    planning = Planning()
    prices = run_survey(opened, statistics, planning)

    def only(kinds: str) -> Survey:
        return run_survey(opened, statistics, replace(planning, candidates=kinds))

    whole = run_plan(opened, statistics, only("int8"), planning, 10**12)
    jobs: list[tuple[str, Survey, int]] = [(f"{share:.2f}", prices, int(share * whole.file_bytes)) for share in SIZES]
    equal = int(EQUAL_SHARE * whole.file_bytes)
    jobs += [(f"distorted {s:.2f}", distorted(prices, s, seed), equal) for seed, s in enumerate(SPREADS)]
    jobs += [(f"only {kinds}", only(kinds), equal) for kinds in MIXES]
    kept = options.out / f"{statistics.key['model'][:16]}-{options.windows}"
    (kept / "matrices").mkdir(parents=True, exist_ok=True)
    rebuilder = Rebuilder(opened, statistics, planning, kept / "matrices")
    reference = open_model(options.model).model
    texts = [
        opened.tokenizer(read_text(text), add_special_tokens=False, verbose=False).input_ids for text in options.text
    ]
    rows: list[dict[str, Any]] = []
    for label, table, target in jobs:
        if (kept / f"{label}.json").exists():
            rows.append(json.loads((kept / f"{label}.json").read_text()))
            continue
        try:
            plan = run_plan(opened, statistics, table, planning, target)
        except BudgetError as error:
            print(f"{label}: {error}", flush=True)
            continue
        predicted = sum(true_loss(table, name, choice.format) for name, choice in plan.sites.items())
        weights, blocks = rebuilder.weights(plan), input_blocks(plan.formats, opened)
        with torch.no_grad(), replaced(opened.model, weights), rounded_inputs(opened.model, blocks):
            losses = [model_loss(opened.model, ids, windows=options.windows, reference=reference) for ids in texts]
        kl = sum(float(loss.kl or 0.0) for loss in losses) / len(losses)
        rows.append({"plan": label, "bytes": plan.file_bytes, "predicted": predicted, "measured": kl})
        (kept / f"{label}.json").write_text(json.dumps(rows[-1]))
        print(f"{label:<14}{plan.file_bytes:>12}{predicted:>10.4f}{kl:>10.4f}", flush=True)
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
    same = np.array([row["plan"].startswith(("distorted", "only")) for row in rows])
    ratio = np.log(predicted / measured)
    return {
        "median_log_error": float(np.median(np.abs(ratio))),
        "spearman_all": float(spearmanr(predicted, measured).statistic),
        "spearman_equal_size": float(spearmanr(predicted[same], measured[same]).statistic),
        "median_log_error_after_constant": float(np.median(np.abs(ratio - np.median(ratio)))),
        "constant": float(np.exp(-np.median(ratio))),
    }


if __name__ == "__main__":
    main()
