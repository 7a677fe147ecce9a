"""Checks and times the second-moment kernel on a CUDA card: `python benchmarks/gpu.py`. Exit 2 where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from edge_svd.kernels.dispatch import VARIABLE
from edge_svd.kernels.symmetric import SymmetricAccumulator

CASES = Path(__file__).parents[1] / "tests" / "kernels" / "second_moment_cases.py"
TOKENS = 4096


def correct() -> bool:
    """Runs the cases of the test suite on the card and prints those that fail."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment[VARIABLE] = "triton"
    done = subprocess.run([sys.executable, CASES, "cuda"], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return False
    results = [json.loads(line) for line in done.stdout.splitlines()]
    failed = [case for case in results if not case["error"] <= case["limit"]]
    print(f"{len(results) - len(failed)} of {len(results)} cases hold")
    for case in failed:
        print(f"  {case['case']}: error {case['error']:.2e}, limit {case['limit']:.0e}")
    return not failed


def milliseconds(accumulator: SymmetricAccumulator, x: torch.Tensor, repeats: int = 20) -> float:
    """Median time of one `add`, by CUDA events, after three warm-up calls."""
    for _ in range(3):
        accumulator.add(x)
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        accumulator.add(x)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def roofline() -> None:
    """Prints, for each width and dtype, time, arithmetic rate and memory rate of the kernel and of its reference."""
    print(f"{torch.cuda.get_device_name()}, {TOKENS} tokens")
    print("| width | dtype | implementation | ms | TFLOP/s | GB/s |\n|---|---|---|---|---|---|")
    for width in (576, 1536, 4096, 11008):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(TOKENS, width, device="cuda").to(dtype)
            for name in ("reference", "triton"):
                os.environ[VARIABLE] = name
                accumulator = SymmetricAccumulator(width, device="cuda")
                taken = milliseconds(accumulator, x)
                # Work that the result needs: one multiply-add for every element of the upper triangle and token.
                flops = TOKENS * width * (width + 1)
                moved = x.nbytes + 2 * accumulator.nbytes
                row = f"{taken:.3f} | {flops / taken / 1e9:.1f} | {moved / taken / 1e6:.0f}"
                print(f"| {width} | {str(dtype).removeprefix('torch.')} | {name} | {row} |")


def main() -> int:
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA card, and PyTorch sees none on this machine.", file=sys.stderr)
        return 2
    if not correct():
        return 1
    roofline()
    return 0


if __name__ == "__main__":
    sys.exit(main())
