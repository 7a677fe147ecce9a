"""`svd-llm`: activation-aware SVD through a Cholesky factor of the input's second moment."""

from __future__ import annotations

from dataclasses import replace

import torch

from edge_svd.decompose.factorization import Factorization, Matrix, eigh
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import required, two_sided
from edge_svd.decompose.whitening import CUT, Metric, Whitening, symmetric
from edge_svd.errors import Failure

REPAIR = 1e-6
"""Added beyond the smallest eigenvalue where Cholesky fails. The published code adds that many units; a share of the
mean diagonal means the same for every scale of the activations."""


@DECOMPOSITIONS.register("svd-llm")
def svd_llm(w: Matrix, c_in: Metric | None, c_out: Metric | None, *, damping: float | None = None) -> Factorization:
    """SVD-LLM: least ‖(W - BA) X‖_F at every rank by Cholesky; a singular X Xᵀ is damped, and the result says so.

    Wang et al. 2025 (SVD-LLM): X Xᵀ = L Lᵀ, the SVD of W L, undone with L⁻¹. Where there is no stable factor, -λ_min +
    1e-6 of the mean diagonal are added to the diagonal first; `Factorization.added` has all that was, `damping` (none
    by default) included. c_out is not used.
    """
    required(c_in, "c_in", "svd-llm")
    assert c_in is not None
    if isinstance(c_in, Whitening):
        return two_sided(w, c_in, None)
    amount = 0.0 if damping is None else damping
    whitening, added = _cholesky(c_in, amount)
    return replace(two_sided(w, whitening, None), added=added)


def _cholesky(metric: Matrix, damping: float) -> tuple[Whitening, float]:
    """The lower factor of C [n, n] and what was added to its diagonal for it, in the units of C."""
    c = symmetric(metric, damping, "c_in")
    mean = max(float(c.diagonal().mean()), 1e-134)
    added = damping * mean
    c.diagonal().add_(added)
    factor = _stable_factor(c)
    if factor is None:
        repair = max(-float(eigh(c)[0][0]), 0.0) + REPAIR * mean
        c.diagonal().add_(repair)
        added += repair
        factor = _stable_factor(c)
    if factor is None:
        raise Failure(f"The second moment c_in has no Cholesky factor, even with {added:.3g} added; use svd-llm-v2.")
    return Whitening(factor, None), added


def _stable_factor(c: torch.Tensor) -> torch.Tensor | None:
    """L with C = L Lᵀ, or None where a pivot is nothing but rounding noise."""
    factor, info = torch.linalg.cholesky_ex(c)
    pivots = factor.diagonal().square()
    stable = int(info) == 0 and bool((pivots > CUT * 1e-3 * pivots.max()).all())
    return factor if stable else None
