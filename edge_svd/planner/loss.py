"""Predicted loss of an error in a weight matrix: the two-sided KL metric, nats per token.

KL(dense ‖ dense with W − E) ≈ ½ E[(gᵀ E x)²] ≈ ½ tr(C_out E C_in Eᵀ), x and g taken as independent (IO-SVD, arXiv
2605.15626).
"""

from __future__ import annotations

import torch

ROWS = 4096


def quadratic(error: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor) -> float:
    """½ tr(C_out E C_in Eᵀ), E [m, n]; products in fp32 where the metrics are, the sum in float64."""
    e = error.to(c_in.device).float()
    return max(0.5 * float(((c_out.float() @ e) * (e @ c_in.float())).sum(dtype=torch.float64)), 0.0)


def weighted_rows(error: torch.Tensor, weight: torch.Tensor, metric: torch.Tensor) -> float:
    """½ Σ_v weight_v e_vᵀ metric e_v over the rows of E [rows, n]: lookups by frequency, logits by variance."""
    total = 0.0
    for start in range(0, error.shape[0], ROWS):
        rows = error[start : start + ROWS].double()
        total += 0.5 * float((weight[start : start + ROWS] * ((rows @ metric) * rows).sum(1)).sum())
    return total
