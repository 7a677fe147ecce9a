"""What one MatMulNBits holds and costs in onnxruntime, by bits, block and shape, each in a fresh process.

    python benchmarks/resident_products.py [--threads 2] [--seconds 0.5]

The chains are those of `edge-svd bench --profile`. Beside the measured anonymous bytes a weight stands what
`edge_svd.planner.memory` predicts, so that the constants of the shipped profiles can be checked on any machine. Prints
a table and writes benchmarks/results/resident-products-DATE.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from edge_svd.devices import DEFAULT, load_profile
from edge_svd.files import atomic_write
from edge_svd.formats import WHOLE_PASS
from edge_svd.planner.memory import product_bytes
from edge_svd.planner.products import Product
from edge_svd.report.machine import describe, today
from edge_svd.runtime.bench import fresh_process
from edge_svd.runtime.profile import SCALE_BYTES

RESULTS = Path(__file__).parent / "results"
SHAPES = ((1536, 576), (576, 192), (2048, 1024))
KERNELS = [(bits, block) for bits in (8, 4, 2) for block in (16, 32, 64, 128) if (bits, block) != (2, 16)]
KERNELS += [(8, 256), (8, WHOLE_PASS)]
WEIGHTS = 40_000_000
EMPTY = 2_300_000
"""Anonymous bytes of a session with next to nothing in it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    costs, rows = load_profile(DEFAULT).memory, []
    for bits, block in KERNELS:
        for n, k in SHAPES:
            pairs = max(2, round(WEIGHTS / (2 * n * k)))
            request = {"rows": n, "columns": k, "bits": bits, "block": block, "pairs": pairs}
            found = fresh_process("kernel_worker", request | {"threads": options.threads, "seconds": options.seconds})
            whole = block == WHOLE_PASS
            both = [Product(m, width, bits, width if whole else block, whole=whole) for m, width in ((n, k), (k, n))]
            predicted = EMPTY + pairs * sum(product_bytes(product, costs) for product in both)
            # The chains keep their scales, which a session of ours gives back where it can.
            predicted += SCALE_BYTES * pairs * sum(product.rows * product.blocks for product in both)
            seconds = found["seconds"] / found["products"]
            rows.append(request | found | {"predicted_bytes": predicted})
            weights = 2 * pairs * n * k
            print(
                f"{bits} bits, block {block:>3}, {n:>4} x {k:<4}  held {found['anonymous_bytes'] / weights:.3f} bytes "
                f"a weight, predicted {predicted / weights:.3f}  {1e6 * seconds:7.2f} µs a product",
                flush=True,
            )
    report = {"date": today(), "machine": describe(), "threads": options.threads, "rows": rows}
    atomic_write(RESULTS / f"resident-products-{today()}.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
