"""The encoder of trellis-coded weights with error feedback in both metrics, compiled.

Weights are taken along antidiagonals (i + j constant): none of them reaches another through the two triangular
feedbacks, so that each antidiagonal is one sequence whose targets are all known, and Viterbi's path through it is the
best one. A weight's predecessors in the trellis are its neighbours above and to the right, (i - 1, j + 1) and so on;
beyond the edge they count as zero.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

Encoder = Callable[..., None]

_LOADING = threading.RLock()


def encoder(bits: int, window: int) -> Encoder:
    """The compiled encoder of a code; see `_encoder`."""
    with _LOADING:
        return _encoder(bits, window)


@cache
def _encoder(bits: int, window: int) -> Encoder:
    """encode(w, right, below, row_weight, column_weight, scale, levels, above, symbols) fills symbols, uint8 [m, n].

    w float32 [m, n]; right float32 [n, n], row j the column j of A; below float32 [m, m], row i the column i of B, or
    [0, 0] where rows do not reach each other; weights float32 [m] and [n], d' and d; scale float32 [m]; levels float32
    [2^window]; above uint8 [t, n], symbols of the rows that came before, t ≥ the code's memory.
    """
    states, symbols_of = 1 << (window - bits), 1 << bits
    keep = states - 1
    # Windows are tried `lanes` at a time, side by side in vector registers: those that end in every possible state, or,
    # where a state is less than a symbol, in every possible symbol.
    lanes = max(states, symbols_of)
    rounds = (1 << window) // lanes

    @numba.njit(fastmath=True, nogil=True, cache=True)  # type: ignore[untyped-decorator]
    def encode(
        w: Any,
        right: Any,
        below: Any,
        row_weight: Any,
        column_weight: Any,
        scale: Any,
        levels: Any,
        above: Any,
        symbols: Any,
    ) -> None:
        m, n = w.shape
        two_sided = below.shape[0] > 0
        error = np.zeros((m, n), np.float32)
        moved = np.zeros((n, m), np.float32) if two_sided else np.zeros((0, 0), np.float32)
        length = min(m, n)
        before = np.empty(length, np.float32)
        target = np.empty(length, np.float32)
        weight = np.empty(length, np.float32)
        back = np.empty((length, states), np.uint8)
        cost = np.empty(states, np.float32)
        known = np.empty(rounds * lanes, np.float32)
        new = np.empty(lanes, np.float32)
        # As wide as the costs, so that both are chosen by one comparison.
        latest = np.empty(lanes, np.int32)
        for d in range(m + n - 1):
            first = max(0, d - n + 1)
            count = min(m - 1, d) - first + 1
            for p in range(count):
                i = first + p
                j = d - i
                x = np.float32(0)
                for q in range(j):
                    x += error[i, q] * right[j, q]
                y = np.float32(0)
                if two_sided:
                    for q in range(i):
                        y += moved[j, q] * below[i, q]
                before[p] = x
                target[p] = (w[i, j] + x + y) / scale[i]
                weight[p] = row_weight[i] * column_weight[j] * scale[i] * scale[i]
            start = 0
            if first == 0:
                t = above.shape[0]
                for back_by in range(t, 0, -1):
                    j = d + back_by
                    symbol = above[t - back_by, j] if j < n else 0
                    start = ((start << bits) | symbol) & keep
            for s in range(states):
                cost[s] = np.float32(1e30)
            cost[start] = 0
            for p in range(count):
                x = target[p]
                g = weight[p]
                if lanes > symbols_of:  # neighbouring lanes come from different states
                    for full in range(rounds * lanes):
                        known[full] = cost[full >> bits]
                for lane in range(lanes):
                    new[lane] = np.float32(3e38)
                for r in range(rounds):
                    number = np.int32(r)
                    if lanes > symbols_of:
                        for lane in range(lanes):
                            e = x - levels[r * lanes + lane]
                            v = known[r * lanes + lane] + e * e * g
                            better = v < new[lane]
                            new[lane] = v if better else new[lane]
                            latest[lane] = number if better else latest[lane]
                    else:  # all lanes come from one state, which saves a load each: a third of the time
                        so_far = cost[r]
                        for lane in range(lanes):
                            e = x - levels[r * lanes + lane]
                            v = so_far + e * e * g
                            better = v < new[lane]
                            new[lane] = v if better else new[lane]
                            latest[lane] = number if better else latest[lane]
                for s in range(states):
                    cost[s] = new[s]
                    back[p, s] = np.uint8(latest[s] * (lanes // states))
                for lane in range(states, lanes):
                    if new[lane] < cost[lane & keep]:
                        cost[lane & keep] = new[lane]
                        back[p, lane & keep] = np.uint8((latest[lane] * lanes + lane) >> (window - bits))
            state = 0
            least = cost[0]
            for s in range(states):
                if cost[s] < least:
                    least = cost[s]
                    state = s
            for p in range(count - 1, -1, -1):
                i = first + p
                j = d - i
                full = (int(back[p, state]) << (window - bits)) | state
                symbols[i, j] = np.uint8(full & (symbols_of - 1))
                e = w[i, j] - levels[full] * scale[i]
                error[i, j] = e
                if two_sided:
                    moved[j, i] = e + before[p]
                state = full >> bits

    # Once here, in one thread: many threads may call it, but numba does not load it for many at once.
    one, none = np.zeros(1, np.float32), np.zeros((0, 0), np.float32)
    unit, byte = np.ones((1, 1), np.float32), np.zeros((1, 1), np.uint8)
    with _LOADING:
        encode(unit, unit, none, one, one, one + 1, np.zeros(1 << window, np.float32), byte, byte.copy())
        encode(unit, unit, unit, one, one, one + 1, np.zeros(1 << window, np.float32), byte[:0], byte.copy())
    return encode
