"""Decompositions of many matrices on the device that computes: together and one by one, and how exact they are.

    python benchmarks/decompositions.py [--shapes 576x576x16 4096x4096x2 ...]

ROWSxCOLUMNSxCOUNT random matrices with random second moments on both sides go through `io-svd`. A line a shape: seconds
for all of them one by one, and together; and at a quarter of the full rank the loss above that of the same
decomposition on the CPU in float64, relative, the largest of the count. `gpu.py` has this as one of its tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402

from edge_svd.compute_device import VARIABLE, compute_device  # noqa: E402
from edge_svd.decompose import Factorization, Metrics, decompose, decompose_together  # noqa: E402

METHOD = "io-svd"
SHAPES = ("576x576x16", "1536x576x16", "4096x4096x4", "11008x4096x2")
Row = dict[str, Any]


def problem(m: int, n: int, seed: int, device: torch.device) -> tuple[torch.Tensor, Metrics]:
    """A matrix and its metrics, with scales that differ from feature to feature; on the device."""
    generator = torch.Generator().manual_seed(seed)

    def moment(width: int) -> torch.Tensor:
        x = torch.randn(2 * width, width, generator=generator) * torch.exp(torch.randn(width, generator=generator))
        x = x.to(device)
        return (x.T @ x / len(x)).double()

    w = torch.randn(m, n, generator=generator) / n**0.5
    return w.to(device), Metrics(moment(n), moment(m))


def seconds(work: Callable[[], object]) -> float:
    """Of one call, the device's work included, after one that warms it up."""
    for _ in range(2):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.perf_counter() - begin


def lost(w: torch.Tensor, metrics: Metrics, found: Factorization, rank: int) -> float:
    """tr(C_out E C_in Eᵀ) of the truncation, float64."""
    assert isinstance(metrics.c_in, torch.Tensor) and isinstance(metrics.c_out, torch.Tensor)
    error = w.double() - found.truncated(rank).to(w.device)
    return float(((metrics.c_out @ error) * (error @ metrics.c_in)).sum())


def row(m: int, n: int, count: int) -> Row:
    """One line of the table."""
    device = compute_device()
    problems = [problem(m, n, seed, device) for seed in range(count)]
    matrices, sites = [w for w, _ in problems], [site for _, site in problems]
    apart = seconds(lambda: [decompose(METHOD)(w, site) for w, site in problems])
    together = seconds(lambda: decompose_together(METHOD, matrices, sites))
    found, rank, above = decompose_together(METHOD, matrices, sites), min(m, n) // 4, 0.0
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "cpu"
    try:
        exact = [decompose(METHOD)(w.cpu(), Metrics(*_moved(site))) for w, site in problems]
    finally:
        os.environ.pop(VARIABLE) if before is None else os.environ.update({VARIABLE: before})
    for (w, site), one, other in zip(problems, found, exact, strict=True):
        least = lost(w, site, other, rank)
        above = max(above, lost(w, site, one, rank) / least - 1)
    return {"what": f"{count} of {m}x{n}", "one_by_one_s": apart, "together_s": together, "loss_above_float64": above}


def _moved(site: Metrics) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(site.c_in, torch.Tensor) and isinstance(site.c_out, torch.Tensor)
    return site.c_in.cpu(), site.c_out.cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    for shape in parser.parse_args().shapes:
        m, n, count = map(int, shape.split("x"))
        print(json.dumps(row(m, n, count)), flush=True)


if __name__ == "__main__":
    main()
