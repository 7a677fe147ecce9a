"""Which estimate of the output metric is worth its time? The ablation behind the default of `calibrate`.

    python benchmarks/estimators.py MODEL --calibration TEXT --text TEXT [--windows 32] [--share 0.7]

For every estimator: seconds of calibration (none where its statistics lie in the cache), KL to the dense model on the
text when io-svd factors keep a share of all inner parameters, allocated by second-order prices (fp32 factors, so that
only the metric differs), and the predicted KL beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from edge_svd.architectures import Site
from edge_svd.calibrate.collect import Estimator, inner_sites
from edge_svd.calibrate.run import calibrate, statistics_key
from edge_svd.calibrate.statistics import MANIFEST, Statistics, cache_key
from edge_svd.decompose import Factorization, Metrics, decompose
from edge_svd.evaluate.text_loss import model_loss
from edge_svd.files import cache_folder
from edge_svd.models import OpenedModel, open_model
from edge_svd.parallel import side_by_side
from edge_svd.planner.held_out import replaced
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.steps import Calibration, calibration_text

HALF = "bfloat16"
ESTIMATORS = {
    "sampled x1": Estimator(precision=HALF),
    "sampled x1 unweighted": Estimator(weighted=False, precision=HALF),
    "sampled x1 fp32": Estimator(),
    "sampled x4": Estimator(samples=4, precision=HALF),
    "top-k 4": Estimator("top-k", k=4, precision=HALF),
}


def factored(opened: OpenedModel, statistics: Statistics, share: float) -> tuple[dict[str, torch.Tensor], float]:
    """Inner matrices with `share` of their parameters kept in all, and the predicted KL.

    The components of least ½σ² a parameter go, wherever they are; a matrix that would keep as many parameters as it
    has stays dense.
    """
    sites = inner_sites(opened.sites)

    def decomposed(site: Site) -> Factorization:
        w = opened.model.get_submodule(site.name).weight.detach()
        with torch.no_grad():
            f = decompose("io-svd")(w, Metrics(statistics.c_in(site), statistics.c_out(site)))
        return Factorization(f.b.float(), f.a.float(), f.energy)

    found = dict(zip((site.name for site in sites), side_by_side(decomposed, sites), strict=True))
    low, high = -60.0, 10.0  # bisection on the logarithm of the price below which a component goes
    for _ in range(50):
        middle = (low + high) / 2
        if kept_parameters(sites, found, middle) > share * sum(math.prod(site.shape) for site in sites):
            low = middle
        else:
            high = middle
    weights: dict[str, torch.Tensor] = {}
    predicted = 0.0
    for site in sites:
        f, rank = found[site.name], rank_at(site, found[site.name], high)
        if rank * sum(site.shape) < math.prod(site.shape):
            weights[site.name] = f.truncated(rank)
            predicted += 0.5 * float(f.energy[rank:].sum())
    return weights, predicted


def rank_at(site: Site, f: Factorization, price: float) -> int:
    """Components that are worth more than exp(price) nats per parameter."""
    return int((0.5 * f.energy / sum(site.shape) > math.exp(price)).sum())


def kept_parameters(sites: Sequence[Site], found: Mapping[str, Factorization], price: float) -> int:
    return sum(min(rank_at(site, found[site.name], price) * sum(site.shape), math.prod(site.shape)) for site in sites)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.7)
    parser.add_argument("--estimators", help="names from the table above, with commas; all by default")
    options = parser.parse_args()
    opened, reference = open_model(options.model), open_model(options.model).model
    text = calibration_text(opened, Calibration((options.calibration,), windows=options.windows))
    windows = torch.from_numpy(text.ids)
    ids = opened.tokenizer(read_text(options.text), add_special_tokens=False, verbose=False).input_ids
    rows: list[dict[str, Any]] = []
    results = Path(__file__).parent / "results" / f"estimators-{options.windows}-{today()}.json"
    results.parent.mkdir(exist_ok=True)
    for name in options.estimators.split(",") if options.estimators else ESTIMATORS:
        estimator = ESTIMATORS[name]
        shape = (int(windows.shape[0]), int(windows.shape[1]))
        key = statistics_key(opened.digest, opened.tokenizer_digest, text.source_digest, shape, 0, estimator)
        folder = cache_folder() / "statistics" / cache_key(key)
        known = (folder / MANIFEST).exists()
        started = time.monotonic()
        statistics = calibrate(opened.model, opened.architecture, windows, key, folder, estimator, extras=())
        seconds = None if known else time.monotonic() - started
        with torch.no_grad():
            weights, predicted = factored(opened, statistics, options.share)
        with replaced(opened.model, weights):
            loss = model_loss(opened.model, ids, windows=8, reference=reference)
        rows.append({"estimator": name, "seconds": seconds, "kl": loss.kl, "predicted": predicted})
        print(f"{name:<32}{seconds or 0:>8.0f} s   KL {loss.kl:.4f}   predicted {predicted:.4f}", flush=True)
        report = {"machine": describe(), "date": today(), "windows": options.windows, "share": options.share}
        results.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
