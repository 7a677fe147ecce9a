"""Whether this processor is better served in bfloat16."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import torch

FLAGS = ("amx_bf16", "avx512_bf16")

ROWS, WIDTH, TRIES = 256, 512, 7

WORTH = 1.2
"""Processors lie at about 0.55 (dot products of AVX-512 on Intel) or at 2 to 6 (tiles): far from it on either side."""


@cache
def bfloat16_is_faster() -> bool:
    """Whether products of matrices take clearly less time in bfloat16 than in float32; measured once a process, in
    some milliseconds, because having the instructions is not enough. Where Linux does not name them, no."""
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in known for flag in FLAGS) and WORTH * _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The best of some products, as linear layers make them, after one that is not counted."""
    x, w = torch.ones(ROWS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    taken = []
    with torch.inference_mode():
        for _ in range(TRIES + 1):
            start = time.perf_counter()
            torch.nn.functional.linear(x, w)
            taken.append(time.perf_counter() - start)
    return min(taken[1:])
