"""Every kernel on a CUDA card: checked, then timed; and a whole compression. Exit 2 without a card.

    python benchmarks/gpu.py [--only KERNEL ...] [--layers [8 16 32]] [--folder DIR]

Each kernel runs the cases of the test suite on the card. Then come tables: its time beside that of plain torch (cuBLAS)
for the same result, and what share of the card it reaches: of the rate at which the card copies memory, or multiplies
bf16 matrices, both measured first. Times are medians with a cold cache (`triton.testing.do_bench`). Then decompositions
together and one by one, and how exact they are (`decompositions.py`). Last, a random model of LLaMA-7B's shape and of
every depth in --layers (8) is compressed, with the time of each stage (`compression_stages.py`; DIR needs 50 GB for 32
layers; `--layers` alone leaves it out). Everything goes to benchmarks/results/gpu-CARD-DATE.json, what is finished as
soon as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import decompositions  # noqa: E402
import torch  # noqa: E402
from compression_stages import METHODS, stages  # noqa: E402

from edge_svd.files import atomic_write, canonical_json  # noqa: E402
from edge_svd.kernels import block_rounding, kl_seeds, row_rounding  # noqa: E402
from edge_svd.kernels.dispatch import VARIABLE  # noqa: E402
from edge_svd.kernels.factored_linear import factored_linear  # noqa: E402
from edge_svd.kernels.rank_components import Components, Part, gather  # noqa: E402
from edge_svd.kernels.symmetric import SymmetricAccumulator  # noqa: E402
from edge_svd.report.machine import describe, today  # noqa: E402
from tests.kernels.harness import KERNELS, broken  # noqa: E402

TOKENS = 4096
Row = dict[str, Any]


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of one call, its inputs not in the cache."""
    from triton.testing import do_bench

    return float(do_bench(work, return_mode="median"))


def by(name: str, work: Callable[[], object]) -> float:
    """The time with kernels by "triton" or "reference"."""
    os.environ[VARIABLE] = name
    return milliseconds(work)


class Card:
    """What the card reaches: `copied` bytes a second (read and written), `multiplied` bf16 operations a second."""

    def __init__(self) -> None:
        big = torch.empty(2**29, dtype=torch.bfloat16, device="cuda")
        other = torch.empty_like(big)
        self.copied = 2 * big.nbytes / milliseconds(lambda: other.copy_(big)) * 1e3
        a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
        self.multiplied = 2 * 8192**3 / milliseconds(lambda: a @ a) * 1e3

    def row(self, what: str, triton: float, torch_ms: float, moved: float, operations: float = 0.0) -> Row:
        """One line of a table: times in milliseconds, `moved` bytes and `operations` that the result needs at least."""
        least = max(moved / self.copied, operations / self.multiplied) * 1e3
        return {"what": what, "triton_ms": triton, "torch_ms": torch_ms, "share_of_card": least / triton}


def second_moments(card: Card) -> list[Row]:
    rows = []
    for width in (576, 1536, 4096, 11008):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(TOKENS, width, device="cuda").to(dtype)
            into = SymmetricAccumulator(width, device="cuda")
            took = by("triton", lambda into=into, x=x: into.add(x))
            full = torch.zeros(width, width, device="cuda", dtype=dtype)
            plain = milliseconds(lambda full=full, x=x: full.addmm_(x.T, x))
            # A multiply-add for every element of the upper triangle and token.
            rows.append(
                card.row(f"{width} {dtype}", took, plain, x.nbytes + 2 * into.nbytes, TOKENS * width * (width + 1))
            )
    return rows


def seeds(card: Card) -> list[Row]:
    rows = []
    for vocabulary in (32000, 49152, 128256):
        logits = torch.randn(512, vocabulary, device="cuda")
        uniform = torch.rand(512, 1, device="cuda")
        took, plain = (
            by(name, lambda logits=logits, uniform=uniform: kl_seeds.sampled(logits, uniform))
            for name in ("triton", "reference")
        )
        rows.append(card.row(f"sampled, 512 x {vocabulary}", took, plain, 3 * logits.nbytes))
        took, plain = (by(name, lambda logits=logits: kl_seeds.top(logits, 8)) for name in ("triton", "reference"))
        rows.append(card.row(f"top 8, 512 x {vocabulary}", took, plain, logits.nbytes))
    return rows


def part(rank: int, n: int, m: int, dtype: torch.dtype) -> Part:
    if dtype == torch.int8:
        a, b = (torch.randint(-127, 128, (rank, width), dtype=dtype, device="cuda") for width in (n, m))
        return Part(a, b, torch.rand(rank, device="cuda") * 1e-4)
    a, b = (torch.randn(rank, width, device="cuda").to(dtype) / rank**0.5 for width in (n, m))
    return Part(a, b)


def factored(card: Card) -> list[Row]:
    rows = []
    for n, m, rank in ((4096, 4096, 1024), (11008, 4096, 1536), (4096, 11008, 1536)):
        dense = torch.randn(m, n, dtype=torch.float16, device="cuda")
        for kinds in ((torch.float16,), (torch.int8,), (torch.int8, torch.float16)):
            components = Components(tuple(part(rank // len(kinds), n, m, kind) for kind in kinds))
            halves = [(p.a.half(), p.b.half()) for p in components.parts]
            for count in (1, 16, 512):
                x = torch.randn(count, n, dtype=torch.float16, device="cuda")
                took = by("triton", lambda x=x, components=components: factored_linear(x, components))

                def plain(x: torch.Tensor = x, halves: Any = halves) -> torch.Tensor:
                    return sum((x @ a.T) @ b for a, b in halves)  # type: ignore[return-value]

                name = "+".join(str(kind).removeprefix("torch.") for kind in kinds)
                row = card.row(
                    f"{count} rows, {m}x{n}, rank {rank}, {name}",
                    took,
                    milliseconds(plain),
                    components.nbytes + x.nbytes + 2 * count * m,
                    2 * count * rank * (m + n),
                )
                rows.append(row | {"dense_ms": milliseconds(lambda x=x, dense=dense: x @ dense.T)})
    return rows


def gathering(card: Card) -> list[Row]:
    rows = []
    for dtype in (torch.float16, torch.int8):
        pool = part(2048, 4096, 11008, dtype)
        chosen = torch.randperm(2048, device="cuda")[:1024]
        took, plain = (
            by(name, lambda pool=pool, chosen=chosen: gather(pool, chosen)) for name in ("triton", "reference")
        )
        rows.append(card.row(f"1024 of 2048 components, 11008x4096, {dtype}", took, plain, pool.nbytes))
    return rows


SHAPES = ((4096, 4096), (4096, 11008))
DECOMPOSED = ("576x576x16", "1536x576x16", "4096x4096x2")
"""Shapes and how many; the CPU's decomposition that they are held against takes a minute at the largest."""


def row_roundings(card: Card) -> list[Row]:
    rows = []
    for m, n in SHAPES:
        w, gradient = torch.randn(m, n, device="cuda"), torch.randn(m, n, device="cuda")
        took, plain = (
            by(name, lambda w=w, gradient=gradient: row_rounding.round_rows(w, 127, gradient))
            for name in ("triton", "reference")
        )
        rows.append(card.row(f"int8 rows and their first-order loss, {m}x{n}", took, plain, 9 * m * n))
    return rows


def block_roundings(card: Card) -> list[Row]:
    rows = []
    for m, n in SHAPES:
        w, gradient = torch.randn(m, n, device="cuda"), torch.randn(m, n, device="cuda")
        weight = torch.rand(n, device="cuda")
        took, plain = (
            by(name, lambda w=w, weight=weight: block_rounding.search(w, weight, 4, 32, True))
            for name in ("triton", "reference")
        )
        rows.append(card.row(f"scales of 4-bit blocks of 32, {m}x{n}", took, plain, 4 * m * n))
        grid = block_rounding.search(w, weight, 4, 32, True)
        took, plain = (
            by(name, lambda w=w, grid=grid, gradient=gradient: block_rounding.nearest(w, grid, gradient))
            for name in ("triton", "reference")
        )
        rows.append(card.row(f"4-bit blocks and their first-order loss, {m}x{n}", took, plain, 9 * m * n))
    return rows


def compressions(layers: list[int], folder: Path | None) -> Iterator[Row]:
    """LLaMA-7B's shape and 256 windows of 2048 tokens, one row a depth and method."""
    os.environ.pop(VARIABLE, None)
    for depth in layers:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            os.environ["EDGE_SVD_CACHE"] = name
            for row in stages(Path(name), depth, METHODS, 256, 2048, hidden=4096, inner=11008, heads=32):
                print(row, flush=True)
                yield row


TABLES: dict[str, Callable[[Card], list[Row]]] = {
    "second_moment": second_moments,
    "kl_seeds": seeds,
    "factored_linear": factored,
    "rank_components": gathering,
    "row_rounding": row_roundings,
    "block_rounding": block_roundings,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--layers", type=int, nargs="*", default=[8])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA card, and PyTorch sees none on this machine.", file=sys.stderr)
        return 2
    import transformers
    import triton

    name = torch.cuda.get_device_name()
    failed = {kernel: broken(kernel, "cuda") for kernel in options.only}
    for kernel, cases in failed.items():
        print(
            f"{kernel}: " + ("every case holds" if not cases else f"{len(cases)} cases fail: {cases[:5]}"), flush=True
        )
    card = Card()
    print(f"{name}: copies {card.copied / 1e9:.0f} GB/s, multiplies {card.multiplied / 1e12:.0f} TFLOP/s in bf16")
    tables: dict[str, list[Row]] = {}
    for kernel in options.only:
        tables[kernel] = TABLES[kernel](card)
        print(f"\n| {kernel} | Triton ms | torch ms | dense ms | share of the card |\n|---|---|---|---|---|")
        for row in tables[kernel]:
            dense = f"{row['dense_ms']:.4f}" if "dense_ms" in row else ""
            print(
                f"| {row['what']} | {row['triton_ms']:.4f} | {row['torch_ms']:.4f} | {dense} "
                f"| {row['share_of_card']:.0%} |",
                flush=True,
            )
    versions = {"torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__}
    result = {
        "card": name,
        "copied_bytes_per_s": card.copied,
        "multiplied_per_s": card.multiplied,
        "failed": failed,
        "tables": tables,
        "versions": versions | {"python": sys.version.split()[0]},
        "machine": describe(),
        "date": today(),
    }
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    file = HERE / "results" / f"gpu-{slug}-{today()}.json"
    atomic_write(file, canonical_json(result))
    print(f"\n{file}", flush=True)
    for shape in DECOMPOSED:
        row = decompositions.row(*map(int, shape.split("x")))
        print(row, flush=True)
        result.setdefault("decompositions", []).append(row)
        atomic_write(file, canonical_json(result))
    for row in compressions(options.layers, options.folder):
        result.setdefault("compression", []).append(row)
        atomic_write(file, canonical_json(result))
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
