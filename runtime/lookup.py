"""Prompt lookup: what followed the latest tokens when they stood in the text before (Saxena 2023; LLMA, Yang et al.
2023, arXiv 2304.04487).

Answers repeat names, code and whole phrases of the prompt and of themselves. A pass over a few tokens costs hardly more
than one over a single token, since both read all weights: whatever of the guess the model confirms is free.
"""

from __future__ import annotations

from typing import Any

import numpy as np

GUESSED = {2: 2, 3: 3, 4: 5}
"""Latest tokens that stood before (four or more in a row count as four) → tokens that are guessed. One alone says too
little. Measured by benchmarks/lookup.py."""

MOST = max(GUESSED.values())

Ids = np.ndarray[Any, np.dtype[np.int64]]


def guess(ids: Ids) -> Ids:
    """The tokens that may follow `ids` [n], the latest last: at most `MOST`, none where nothing like the end stood
    before. Of several places the one that agrees longest, then the latest."""
    if len(ids) < 3:
        return ids[:0]
    ends = np.flatnonzero((ids[1:-1] == ids[-1]) & (ids[:-2] == ids[-2])) + 1
    if not len(ends):
        return ids[:0]
    longest = 2
    for length in range(3, max(GUESSED) + 1):
        if len(ids) <= length:
            break
        longer = ends[(ends >= length - 1) & (ids[ends - length + 1] == ids[-length])]
        if not len(longer):
            break
        ends, longest = longer, length
    # What repeats with a period shorter than the guess goes on repeating.
    return np.resize(ids[ends[-1] + 1 :], GUESSED[longest])
