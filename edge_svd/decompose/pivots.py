"""A matrix of rank k as k of its own rows and the coefficients of the others: k² numbers fewer than two factors hold.

B A = [I; C] A_p with A_p the pivot rows of B A (Zhao et al. 2025, "Pivoting Factorization", arXiv 2501.19090, section
3). Pivots come from a QR factorisation with column pivoting, in coordinates where row i of B has the length of the
output y_i's root mean square, so that large outputs carry small ones and C stays near 1.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch

from edge_svd.errors import Failure

RIDGE = 1e-4
"""Share of a metric's mean diagonal added to it before it is inverted, as the decomposition does."""

SINGULAR = 1e-12
"""Of the largest diagonal entry of R: rows beyond it depend on those before."""

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Shares tried in turn where a Cholesky factor is needed."""

NOT_FINITE = "Cannot pivot a matrix whose factors or metrics hold NaN or Inf."


def damped(metric: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """A symmetric metric with a share of its mean diagonal added."""
    result = metric.clone()
    result.diagonal().add_(max(ridge * float(result.diagonal().mean()), 1e-140))
    return result


def cholesky(metric: torch.Tensor) -> torch.Tensor:
    """Lower factor; a metric of too few samples, indefinite by its fp32 noise, is damped until it has one.

    Failure where it holds NaN or Inf.
    """
    for ridge in RIDGES:
        factor, failed = torch.linalg.cholesky_ex(damped(metric, ridge))
        if not int(failed) and torch.isfinite(factor).all():
            return factor
    raise Failure(NOT_FINITE)


def choose_pivots(b: torch.Tensor, a: torch.Tensor, c_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(pivots [k], rest [m - k], both rising) among the rows of B A, B [m, k], A [k, n], E[x xᵀ] = C_in; float64."""
    k, (_, chosen) = b.shape[1], _pivoted_qr(b, a, c_in)
    return chosen[:k].sort().values, chosen[k:].sort().values


def pivot_factors(b: torch.Tensor, a: torch.Tensor, c_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B' [m, k], A' [k, n]) with B' A' = B A and k rows of B' those of the identity; float64, k ≤ min(m, n).

    What has to be stored is C, the other m - k rows of B', and A', which are k rows of B A: k (m + n - k) numbers.
    Where B A is of a lower rank than k, pivots beyond it are rows that no other needs.

    Raises:
        Failure: NaN or Inf in a factor or the metric.
    """
    k = b.shape[1]
    made = torch.zeros_like(b)
    if not k:
        return made, a
    r, chosen = _pivoted_qr(b, a, c_in)
    sizes = r.diagonal().abs()
    rank = int((sizes > SINGULAR * sizes[0]).sum())
    made[chosen[:k], torch.arange(k)] = 1.0
    made[chosen[k:], :rank] = torch.linalg.solve_triangular(r[:rank, :rank], r[:rank, k:], upper=True).T
    return made, b[chosen[:k]] @ a


def _pivoted_qr(b: torch.Tensor, a: torch.Tensor, c_in: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(R [k, m], the rows [m] in the order of its columns) for the rows of B, scaled as the outputs that they make."""
    scaled = b @ cholesky(a @ c_in @ a.T)
    if not torch.isfinite(scaled).all():
        raise Failure(NOT_FINITE)
    r, chosen = scipy.linalg.qr(scaled.T.numpy(), mode="r", pivoting=True, check_finite=False)
    return torch.from_numpy(r), torch.from_numpy(np.asarray(chosen, dtype=np.int64))
