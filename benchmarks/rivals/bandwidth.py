"""`python bandwidth.py THREADS` prints how many bytes a second this machine reads from memory, in one line of JSON.

Every thread takes the maximum of its own part of an array far above the last-level cache: one instruction a vector, so
that memory is what it waits for. The best of several passes counts.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

LEAST = 512 * 2**20
PASSES = 7


def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Bytes of the largest cache that the first processor sees; 0 where the system does not say."""
    found = [0]
    for file in folder.glob("index*/size"):
        text = file.read_text().strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        digits = text.rstrip("KMG")
        if digits.isdigit():
            found.append(int(digits) * unit)
    return max(found)


def read_bandwidth(threads: int, size: int, passes: int = PASSES) -> float:
    """Bytes a second at which `threads` threads together read an array of `size` bytes; the best of `passes`."""
    whole = np.ones(size // 4, np.float32)
    parts = np.array_split(whole, threads)

    def read(part: np.ndarray[Any, Any]) -> None:
        part.max()

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(passes):
            started = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - started)
    return whole.nbytes / best


if __name__ == "__main__":
    size = max(LEAST, 8 * last_level_cache())
    print(json.dumps({"bytes_per_s": read_bandwidth(int(sys.argv[1]), size), "array_bytes": size}))
