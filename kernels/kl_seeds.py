"""Cotangents at the logits whose pull-back through the network makes the output metric of every matrix.

KL(p ‖ p + δ) ≈ ½ δzᵀ (diag p − p pᵀ) δz (IO-SVD, arXiv 2605.15626, output-side construction). Sampled, a cotangent is
p − e_y with y drawn from p. Exact over the k most probable tokens there are k, the i-th ± √p̂_i (e_i − p̂) with p̂
renormalised, which are zero but at k places and are kept as k numbers.

By Triton, every logit is read once for maxima, sums, the k largest and the draw, which re-reads one chunk of a row, and
a second time where dense cotangents are written: 3 passes over tokens x vocabulary, where softmax, cumulative sum,
search, scatter and variance one after another make at least 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton, require, require_together
from edge_svd.runtime.errors import InputError

MOST = 4096
"""The most tokens that exact cotangents can be over."""


@dataclass(frozen=True)
class Top:
    """The k most probable tokens of every row, falling: p̂ fp32 [tokens, k] that sums to one, places int64 alike."""

    share: torch.Tensor
    places: torch.Tensor


def sampled(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    slope: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cotangents (p − e_y) · slope in `dtype` [tokens, vocabulary] and Σ_t p (1 − p) · slope² fp32 [vocabulary].

    logits: [tokens, vocabulary] fp32, fp16 or bf16. uniform: fp32 [tokens, 1] in [0, 1), where in the cumulative
    distribution y is drawn. slope: d logits / d (what the head puts out), [tokens, vocabulary] or one number fp32; None
    where the two are the same. NaN in a row of logits makes that row of cotangents NaN.
    Raises InputError on what does not fit.
    """
    require(uniform, "random numbers", (len(logits), 1), (torch.float32,))
    _check(logits, slope)
    require_together(logits, uniform=uniform)
    if by_triton(logits):
        from edge_svd.kernels import kl_seeds_triton

        return kl_seeds_triton.sampled(logits, uniform, slope, dtype)
    p = torch.softmax(logits.float(), dim=1)
    drawn = draw(p, uniform)
    spread = p * (1 - p)
    seeds = p.scatter_add_(1, drawn, torch.full_like(drawn, -1, dtype=p.dtype))
    if slope is not None:
        seeds, spread = seeds * slope, spread * slope.square()
    return seeds.to(dtype), spread.sum(0)


def draw(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token [tokens, 1] from each row of probabilities by inverting the cumulative sum at uniform [tokens, 1]."""
    cumulative = p.cumsum(1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_max(p.shape[1] - 1)


def top(logits: torch.Tensor, k: int) -> Top:
    """The k most probable tokens of logits [tokens, vocabulary] fp32, fp16 or bf16; errors as `sampled`."""
    _check(logits, None)
    if not 0 < k <= min(logits.shape[1], MOST):
        raise InputError(f"The {k} most probable of {logits.shape[1]} tokens cannot be taken; from 1 to {MOST} can.")
    if by_triton(logits):
        from edge_svd.kernels import kl_seeds_triton

        values, places = kl_seeds_triton.largest(logits, k)
    else:
        values, places = logits.float().topk(k, dim=1)
    return Top(torch.softmax(values, dim=1), places)


def variance(logits: torch.Tensor, slope: torch.Tensor | None = None) -> torch.Tensor:
    """Σ_t p (1 − p) · slope² of every logit, fp32 [vocabulary]; arguments and errors as `sampled`."""
    _check(logits, slope)
    if by_triton(logits):
        from edge_svd.kernels import kl_seeds_triton

        return kl_seeds_triton.variance(logits, slope)
    p = torch.softmax(logits.float(), dim=1)
    spread = p * (1 - p)
    return (spread if slope is None else spread * slope.square()).sum(0)


def exact(found: Top, index: int, signs: torch.Tensor) -> torch.Tensor:
    """The index-th of the k exact cotangents, at `found.places`, fp32 [tokens, k]: s √p̂_i (e_i − p̂).

    signs: ±1 fp32 [tokens, 1], independent, without which positions would interfere.
    """
    if not 0 <= index < found.share.shape[1]:
        raise InputError(f"There are {found.share.shape[1]} exact cotangents, and no number {index}.")
    weight = signs * found.share[:, index : index + 1].sqrt()
    made = -weight * found.share
    made[:, index : index + 1] += weight
    return made


def _check(logits: torch.Tensor, slope: torch.Tensor | None) -> None:
    require(logits, "logits", (None, None), DTYPES)
    if slope is not None:
        require(slope, "slope", tuple(logits.shape) if slope.ndim else (), (torch.float32,))
    if slope is not None and slope.ndim:
        require_together(logits, slope=slope)
