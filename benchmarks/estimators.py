"""Which estimate of the output metric is worth its time? The ablation behind the default of `calibrate`.

    python benchmarks/estimators.py MODEL --calibration TEXT --text TEXT [--windows 32] [--share 0.8]

For every estimator: seconds of calibration, KL to the dense model on the text when all inner matrices are factored at
the same share of their parameters by io-svd (uniform ranks, fp32 factors, so that only the metric differs), and the
predicted KL beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.collect import Estimator, inner_sites
from edge_svd.calibrate.run import calibrate, statistics_key
from edge_svd.calibrate.statistics import Statistics
from edge_svd.decompose import decompose
from edge_svd.evaluate.text_loss import model_loss
from edge_svd.models import OpenedModel, open_model
from edge_svd.parallel import side_by_side
from edge_svd.planner.correction import replaced
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.steps import Calibration, calibration_text

ESTIMATORS = {
    "sampled x1": Estimator(),
    "sampled x1, bfloat16": Estimator(precision="bfloat16"),
    "sampled x1, inputs unweighted": Estimator(weighted=False),
    "sampled x4": Estimator(samples=4),
    "top-k 4": Estimator("top-k", k=4),
}


def factored(opened: OpenedModel, statistics: Statistics, share: float) -> tuple[dict[str, torch.Tensor], float]:
    """Every inner matrix at rank ⌊share · mn / (m + n)⌋, and the predicted KL of all of them."""
    weights: dict[str, torch.Tensor] = {}
    predicted = 0.0

    def truncated(site: Site) -> tuple[torch.Tensor, float]:
        m, n = site.shape
        rank = int(share * m * n / (m + n))
        w = opened.model.get_submodule(site.name).weight.detach()
        with torch.no_grad():
            f = decompose("io-svd")(w, statistics.c_in(site), statistics.c_out(site))
            return f.truncated(rank).float(), 0.5 * float(f.energy[rank:].sum())

    sites = inner_sites(opened.sites)
    for site, (matrix, loss) in zip(sites, side_by_side(truncated, sites), strict=True):
        weights[site.name] = matrix
        predicted += loss
    return weights, predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.8)
    options = parser.parse_args()
    opened, reference = open_model(options.model), open_model(options.model).model
    text = calibration_text(opened, Calibration((options.calibration,), windows=options.windows))
    windows = torch.from_numpy(text.ids)
    ids = opened.tokenizer(read_text(options.text), add_special_tokens=False, verbose=False).input_ids
    rows: list[dict[str, Any]] = []
    for name, estimator in ESTIMATORS.items():
        shape = (int(windows.shape[0]), int(windows.shape[1]))
        key = statistics_key(opened.digest, opened.tokenizer_digest, text.source_digest, shape, 0, estimator)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            started = time.monotonic()
            out = Path(folder) / "s"
            statistics = calibrate(opened.model, opened.architecture, windows, key, out, estimator, gradients=False)
            seconds = time.monotonic() - started
            weights, predicted = factored(opened, statistics, options.share)
        with replaced(opened.model, weights):
            loss = model_loss(opened.model, ids, windows=8, reference=reference)
        rows.append({"estimator": name, "seconds": seconds, "kl": loss.kl, "predicted": predicted})
        print(f"{name:<32}{seconds:>8.0f} s   KL {loss.kl:.4f}   predicted {predicted:.4f}", flush=True)
    results = Path(__file__).parent / "results" / f"estimators-{today()}.json"
    results.parent.mkdir(exist_ok=True)
    report = {"machine": describe(), "date": today(), "windows": options.windows, "share": options.share, "rows": rows}
    results.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
