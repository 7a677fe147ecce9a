"""Time of one second-moment update by block size, against a full product: `python benchmarks/second_moment.py`.

Single-threaded processor time (the least of several calls), so that other work on the machine does not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from edge_svd.kernels.symmetric import SymmetricAccumulator

TOKENS = 512
BLOCKS = (96, 128, 192, 256, 288, 384, 512)


def milliseconds(work: Callable[[], object], repeats: int = 15) -> float:
    """Least processor time of one call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    print("| width | block | ms | of the full product | MB |\n|---|---|---|---|---|")
    for width in (576, 1536):
        x, total = torch.randn(TOKENS, width), torch.zeros(width, width)
        whole = milliseconds(lambda total=total, x=x: total.addmm_(x.T, x))
        print(f"| {width} | full | {whole:.2f} | 1.00 | {total.nbytes / 1e6:.1f} |")
        for block in BLOCKS:
            accumulator = SymmetricAccumulator(width, block)
            taken = milliseconds(lambda accumulator=accumulator, x=x: accumulator.add(x))
            print(f"| {width} | {block} | {taken:.2f} | {taken / whole:.2f} | {accumulator.nbytes / 1e6:.1f} |")


if __name__ == "__main__":
    main()
