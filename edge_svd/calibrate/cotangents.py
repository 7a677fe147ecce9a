"""How the output metric of every matrix is estimated: which cotangents at the logits are pulled back, and how many.

`sampled`: p − e_y with y drawn from p, an unbiased draw of the whole curvature; averaged over passes. `top-k`: one pass
for each of the k most probable tokens, exact over these (`kernels.kl_seeds`).
"""

from __future__ import annotations

from collections.abc import Iterator

from edge_svd.errors import InputError

ESTIMATORS = ("sampled", "top-k")


def passes(estimator: str, samples: int, k: int) -> int:
    """How many backward passes a window takes; InputError for an unknown estimator."""
    if estimator not in ESTIMATORS:
        raise InputError(f"Unknown curvature estimator {estimator!r}; known are {', '.join(ESTIMATORS)}.")
    return samples if estimator == "sampled" else k


def blocks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`, so that logits of a whole window never exist at once."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
