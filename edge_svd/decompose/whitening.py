"""Square roots of metrics: C = F Fᵀ, with a way back that survives singular and ill-conditioned C."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch

from edge_svd.compute_device import compute_device
from edge_svd.decompose.eigenvectors import eigh
from edge_svd.decompose.factorization import Matrix, as_matrix
from edge_svd.errors import InputError

# Eigenvalues at or below this share of the largest are cut. Second moments are accumulated in fp32, whose rounding
# alone makes eigenvalues of about 1e-8 to 1e-7 of the largest, so the cut removes only what carries nothing for certain
# (exact zeros, negative values, float64 noise at 1e-13) and leaves the rest to damping.
CUT = 1e-9


@dataclass(frozen=True)
class Whitening:
    """factor F: [n, p] with C = F Fᵀ (on the kept directions); inverse G: [p, n] with G F = I, or None where F is
    lower triangular and is solved with instead."""

    factor: torch.Tensor
    inverse: torch.Tensor | None

    @property
    def width(self) -> int:
        """n, the side of the metric."""
        return self.factor.shape[0]

    def undo(self, rows: torch.Tensor) -> torch.Tensor:
        """rows [k, p] → rows @ G [k, n]."""
        if self.inverse is not None:
            return rows @ self.inverse
        return torch.linalg.solve_triangular(self.factor, rows, upper=False, left=False)


Metric: TypeAlias = Matrix | Whitening


def whiten(metric: Metric, damping: float, name: str = "metric") -> Whitening:
    """F with F Fᵀ = C + damping · mean(diag C) · I, for a symmetric positive semidefinite C [n, n].

    With damping d the condition number is at most n / d, so from 1e-6 on Cholesky is safe; otherwise, or where it
    fails, eigenvectors with eigenvalues at or below `CUT` of the largest left out. A C of zeros is damped by the
    smallest scale that float64 can still square: a site which never mattered keeps its matrix and has no energy.
    Raises Failure on NaN and infinity, InputError where C is not square or damping is negative.
    """
    if isinstance(metric, Whitening):
        return metric
    c = symmetric(metric, damping, name)
    if damping > 0.0:
        c.diagonal().add_(max(damping * float(c.diagonal().mean()), 1e-140))
    if damping >= 1e-6:
        factor, info = torch.linalg.cholesky_ex(c)
        if int(info) == 0:
            return Whitening(factor, None)
    values, vectors = _kept(c)
    return Whitening(vectors * values.sqrt(), (vectors / values.sqrt()).T)


def spectrum(metric: Metric, name: str = "metric") -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues above the cut, falling [p], and their eigenvectors [n, p]; errors as `whiten`."""
    if isinstance(metric, Whitening):
        metric = metric.factor @ metric.factor.T
    return _kept(symmetric(metric, 0.0, name))


def _kept(c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = eigh(c)
    keep = values > max(CUT * float(values[-1]), 0.0)
    return values[keep].flip(0), vectors[:, keep].flip(1)


def symmetric(metric: Matrix, damping: float, name: str) -> torch.Tensor:
    """The metric in float64 [n, n], a copy on the device that computes, its rounding noise averaged away; refuses what
    `whiten` refuses."""
    c = as_matrix(metric, name)
    if c.shape[0] != c.shape[1]:
        raise InputError(f"The metric {name} must be square, not {list(c.shape)}.")
    if not damping >= 0.0:
        raise InputError(f"The damping must be zero or positive, not {damping}.")
    c = c.to(compute_device())
    return (c + c.T) / 2
