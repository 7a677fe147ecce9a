"""Directions at the logits whose pull-back through the network makes the output metric of every matrix.

KL(p ‖ p + δ) ≈ ½ δzᵀ (diag p − p pᵀ) δz. With cotangents ε such that E[ε εᵀ] = diag p − p pᵀ, the gradients
g = (∂z/∂y)ᵀ ε satisfy E[g gᵀ] = C_out, the metric of y (IO-SVD, arXiv 2605.15626, output-side construction; Fisher
identity for the sampled form).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from edge_svd.errors import InputError

ESTIMATORS = ("sampled", "top-k")


def passes(estimator: str, samples: int, k: int) -> int:
    """How many backward passes a window takes; InputError for an unknown estimator."""
    if estimator not in ESTIMATORS:
        raise InputError(f"Unknown curvature estimator {estimator!r}; known are {', '.join(ESTIMATORS)}.")
    return samples if estimator == "sampled" else k


def cotangent(
    probabilities: torch.Tensor, estimator: str, index: int, k: int, generator: torch.Generator
) -> torch.Tensor:
    """Cotangents [tokens, vocabulary] at the logits for backward pass number `index`.

    `sampled`: p − e_y with y drawn from p: an unbiased draw of the whole curvature; average over passes.
    `top-k`: s √p̂_i (e_i − p̂) for the index-th most probable token i, p̂ renormalised over the k most probable and s an
    independent random sign at every position, without which positions would interfere; sum over the k passes.
    """
    if estimator == "sampled":
        drawn = draw(probabilities, generator)
        return probabilities.scatter_add(1, drawn, torch.full_like(drawn, -1, dtype=probabilities.dtype))
    top, tokens = probabilities.topk(k, dim=1)
    top = top / top.sum(1, keepdim=True)
    signs = torch.randint(0, 2, (len(top), 1), generator=generator).to(top.dtype) * 2 - 1
    weight = signs * top[:, index : index + 1].sqrt()
    result = torch.zeros_like(probabilities).scatter_(1, tokens, -weight * top)
    return result.scatter_add_(1, tokens[:, index : index + 1], weight)


def draw(probabilities: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token [tokens, 1] from each row by inverting the cumulative sum, in a tenth of torch.multinomial's time."""
    cumulative = probabilities.cumsum(1)
    uniform = torch.rand(len(probabilities), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, uniform).clamp_max(probabilities.shape[1] - 1)


def blocks(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`, so that logits of a whole window never exist at once."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
