"""Train the level tables of the trellis codes (`edge_svd/trellis_codes.json`).

    python benchmarks/train_trellis_codes.py --out trellis_codes.json

Lloyd's iterations: encode a sample, let every window's level be the mean of what fell into it. The source is Student's
t with 16 degrees of freedom (kurtosis 3.5, as weight rows have). Prints each code's noise in dB below unit variance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

WINDOWS = {1: 8, 2: 8, 3: 9, 4: 10, 5: 10, 6: 10}
FREEDOM = 16
ITERATIONS, LAST, SAMPLE, SEEDS = 40, 4, 80_000, 3

Floats = NDArray[np.float32]


@numba.njit(fastmath=True)  # type: ignore[untyped-decorator]
def viterbi(sample: Any, levels: Any, bits: int, window: int, out: Any) -> None:
    """The window of every sample on the best path."""
    states, symbols = 1 << (window - bits), 1 << bits
    cost = np.full(states, np.float32(1e30))
    cost[0] = 0
    new = np.empty(states, np.float32)
    back = np.empty((len(sample), states), np.uint8)
    for i in range(len(sample)):
        new[:] = np.float32(3e38)
        for h in range(symbols):
            for state in range(states):
                full = (h << (window - bits)) | state
                e = sample[i] - levels[full]
                v = cost[full >> bits] + e * e
                if v < new[state]:
                    new[state] = v
                    back[i, state] = h
        cost[:] = new
    state = np.int64(np.argmin(cost))
    for i in range(len(sample) - 1, -1, -1):
        full = (np.int64(back[i, state]) << (window - bits)) | state
        out[i] = full
        state = full >> bits


def draw(generator: np.random.Generator, count: int) -> Floats:
    return (generator.standard_t(FREEDOM, count) / np.sqrt(FREEDOM / (FREEDOM - 2))).astype(np.float32)


def start(bits: int, window: int, generator: np.random.Generator) -> Floats:
    """Quantiles, dealt out so that every state can reach every part of the range."""
    states, symbols = 1 << (window - bits), 1 << bits
    total = 1 << window
    quantiles = student.ppf((np.arange(total) + 0.5) / total, FREEDOM) / np.sqrt(FREEDOM / (FREEDOM - 2))
    order = generator.permutation(states)
    rows = [generator.permutation(quantiles[np.arange(symbols) * states + order[state]]) for state in range(states)]
    return np.concatenate(rows).astype(np.float32)


def train(bits: int, seed: int) -> tuple[NDArray[np.int8], float, float]:
    """(levels, unit, noise)."""
    window, generator = WINDOWS[bits], np.random.default_rng(seed)
    out = np.empty(SAMPLE, np.int64)

    def improved(levels: Floats) -> Floats:
        sample = draw(generator, SAMPLE)
        viterbi(sample, levels, bits, window, out)
        sums, counts = (np.bincount(out, weights, 1 << window) for weights in (sample, None))
        return np.where(counts > 3, sums / np.maximum(counts, 1), levels).astype(np.float32)

    levels = start(bits, window, generator)
    for _ in range(ITERATIONS):
        levels = improved(levels)
    unit = float(np.abs(levels).max() / 127)
    mean = np.mean([improved(levels) for _ in range(LAST)], axis=0)
    whole = np.clip(np.round(mean / unit), -127, 127).astype(np.int8)
    sample, found = draw(generator, 300_000), np.empty(300_000, np.int64)
    real = (whole * unit).astype(np.float32)
    viterbi(sample, real, bits, window, found)
    return whole, unit, float(np.mean((sample - real[found]) ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    table = {}
    arguments = parser.parse_args()
    for bits, window in WINDOWS.items():
        levels, unit, noise = min((train(bits, seed) for seed in range(SEEDS)), key=lambda found: found[2])
        print(f"{bits} bits, window {window}: noise {10 * np.log10(noise):.2f} dB", flush=True)
        table[bits] = {"window": window, "unit": unit, "noise": noise, "levels": levels.tolist()}
    arguments.out.write_text(json.dumps(table, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
