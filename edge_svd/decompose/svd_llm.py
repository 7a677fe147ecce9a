"""`svd-llm`: activation-aware SVD through a Cholesky factor of the input's second moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edge_svd.decompose.eigenvectors import eigh
from edge_svd.decompose.factorization import Matrix
from edge_svd.decompose.metrics import Measured, required
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.two_sided import Sides, TwoSided
from edge_svd.decompose.whitening import CUT, Metric, Whitening, symmetric
from edge_svd.errors import Failure

REPAIR = 1e-6
"""Added beyond the smallest eigenvalue where Cholesky fails. The published code adds that many units; a share of the
mean diagonal means the same for every scale of the activations."""


@DECOMPOSITIONS.register("svd-llm")
@dataclass(frozen=True)
class SvdLlm(TwoSided):
    """SVD-LLM: least ‖(W - BA) X‖_F at every rank by Cholesky; a singular X Xᵀ is damped, and the result says so.

    Wang et al. 2025 (SVD-LLM): X Xᵀ = L Lᵀ, the SVD of W L, undone with L⁻¹. Where there is no stable factor, -λ_min +
    1e-6 of the mean diagonal are added to the diagonal first; `Factorization.added` has all that was, `damping` (none
    by default) included.
    """

    damping: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def sides(self, w: Matrix, site: Measured) -> Sides:
        return whitened(site.moment, self.damping, "svd-llm")


def whitened(moment: Metric | None, damping: float, method: str) -> Sides:
    """The second moment's L on the side of the inputs, and what was added for it."""
    found = required(moment, "moment", method)
    if isinstance(found, Whitening):
        return Sides(found, None)
    whitening, added = _cholesky(found, damping)
    return Sides(whitening, None, added)


def _cholesky(metric: Matrix, damping: float) -> tuple[Whitening, float]:
    """The lower factor of C [n, n] and what was added to its diagonal for it, in the units of C."""
    c = symmetric(metric, damping, "moment")
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
        raise Failure(f"The second moment has no Cholesky factor, even with {added:.3g} added; use svd-llm-v2.")
    return Whitening(factor, None), added


def _stable_factor(c: torch.Tensor) -> torch.Tensor | None:
    """L with C = L Lᵀ, or None where a pivot is nothing but rounding noise."""
    factor, info = torch.linalg.cholesky_ex(c)
    pivots = factor.diagonal().square()
    stable = int(info) == 0 and bool((pivots > CUT * 1e-3 * pivots.max()).all())
    return factor if stable else None
