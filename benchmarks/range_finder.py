"""A few components of a wide matrix, with all eigenvectors and without: time, and what the loss is above the least.

    python benchmarks/range_finder.py [--widths 1024 2048 4096] [--ranks 16 64]

The matrix is a random error between the square roots of two metrics with log-normal scales, as where a low-rank
correction is made for rounded weights. Times are of the decomposition alone, and to be read beside each other. The
table goes to benchmarks/results/range-finder-DATE.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from edge_svd.decompose.factorization import split
from edge_svd.decompose.range_finder import TOLERANCE
from edge_svd.files import atomic_write, canonical_json
from edge_svd.report.machine import describe, today


def matrix(width: int) -> torch.Tensor:
    """[width, width] float64; the scales spread by a factor e on either side."""
    generator = torch.Generator().manual_seed(width)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    left, right = (torch.linalg.qr(draw(width, width))[0] * torch.exp(draw(width)) for _ in range(2))
    return left.T @ draw(width, width) @ right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for width in options.widths:
        m = matrix(width)
        total = float(m.square().sum())
        begin = time.monotonic()
        energy = split(m)[2]
        whole = time.monotonic() - begin
        for rank in options.ranks:
            begin = time.monotonic()
            few = split(m, rank)[2]
            took = time.monotonic() - begin
            least = total - float(energy[:rank].sum())
            above = (total - float(few.sum())) / least - 1
            rows.append({"width": width, "rank": rank, "all_s": whole, "few_s": took, "loss_above_least": above})
            print(
                f"{width} x {width}, rank {rank}: {took:.2f} s, all {whole:.2f} s ({whole / took:.1f} times as long); "
                f"the loss is {above:.1e} above the least (at most {TOLERANCE:.0e})",
                flush=True,
            )
    file = Path(__file__).parent / "results" / f"range-finder-{today()}.json"
    atomic_write(file, canonical_json({"rows": rows, "machine": describe(), "date": today()}))
    print(file)


if __name__ == "__main__":
    main()
