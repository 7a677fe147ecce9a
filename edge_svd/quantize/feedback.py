"""Factors of a metric for error feedback: which earlier rounding errors the next weight should make good.

With C_in = A D Aᵀ and C_out = B D' Bᵀ, A and B unit upper triangular, ½ tr(C_out E C_in Eᵀ) = ½ Σ d'_i d_j η_ij² with
η = Bᵀ E A. Row i and column j of η depend on the errors of rows ≤ i and columns ≤ j alone, so that each weight can be
chosen to make its η pure rounding error. With C_out = 1 that is GPTQ (Frantar et al. 2022, arXiv 2210.17323).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from edge_svd.errors import Failure

DAMPING = 1e-2
"""Share of a metric's mean diagonal added to it; less lets the feedback trust noise of the calibration."""


@dataclass(frozen=True)
class UnitFactor:
    """A damped metric [n, n] as upper diag(weight) upperᵀ.

    Attributes:
        upper: float32, ones on the diagonal.
        weight: float64 [n], what the rounder weighs an η with.
        plain: float64 [n], what an η costs in the metric without its damping.
        reach: float32 [n, n], how much of the variance of η_j an error i takes over: (upper⁻¹)_ji².
    """

    upper: torch.Tensor
    weight: torch.Tensor
    plain: torch.Tensor
    reach: torch.Tensor

    @cached_property
    def gain(self) -> float:
        """Variance of an error over that of the η it is made of, weighted by what an η costs."""
        return float(self.reach.double().sum(1) @ self.plain / self.plain.sum().clamp_min(1e-300))

    def spread(self, metric: torch.Tensor) -> torch.Tensor:
        """[n] float64: what independent errors η_j cost each in another metric [n, n]."""
        inverse = _inverse(self.upper)
        return ((inverse @ metric.double()) * inverse).sum(1)


def unit_factor(metric: torch.Tensor, damping: float = DAMPING) -> UnitFactor:
    """Factor a symmetric positive semidefinite metric, damped; Failure if it holds NaN or Inf."""
    c = metric.double().clone()
    mean = float(c.diagonal().mean())
    added = 0.0
    for share in (damping, 10 * damping, 1.0):
        extra = max(share * mean, 1e-30)
        added += extra
        c.diagonal().add_(extra)
        # The usual lower factor of the reversed matrix is the upper factor of this one.
        lower, failed = torch.linalg.cholesky_ex(c.flip(0, 1))
        if not int(failed) and torch.isfinite(lower).all():
            upper = lower.flip(0, 1)
            root = upper.diagonal().clone()
            unit = upper / root
            squares = _inverse(unit).square_()
            plain = root.square() - added * squares.sum(1)
            return UnitFactor(unit.float().contiguous(), root.square(), plain.clamp_min(0), squares.T.float())
    raise Failure("Cannot round with error feedback: a metric holds NaN or Inf.")


def _inverse(upper: torch.Tensor) -> torch.Tensor:
    eye = torch.eye(len(upper), dtype=torch.float64)
    return torch.linalg.solve_triangular(upper.double(), eye, upper=True, unitriangular=True)


def by_importance(metric: torch.Tensor) -> torch.Tensor:
    """Order in which to round: largest second moment first, so that what matters most has most left to correct it."""
    return torch.argsort(metric.diagonal(), descending=True, stable=True)
