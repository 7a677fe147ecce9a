"""A matrix of rank k as k of its own rows and the coefficients of the others, or the same of columns; int8.

W ≈ B A = [I; C] A_p as in `decompose.pivots`, rounded. Columns are the rows of the transposed matrix, with the two
metrics exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.decompose.pivots import cholesky, choose_pivots
from edge_svd.quantize.rows import dequantise_rows, round_rows

Rounded = tuple[torch.Tensor, torch.Tensor]
"""int8 numbers and one bfloat16 scale a row, as `round_rows` gives them."""


@dataclass(frozen=True)
class Pivoted:
    """Rounded parts of W [m, n].

    By rows: W[pivots] = base [k, n], W[rest] = coefficients [m - k, k] @ base.
    By columns: W[:, pivots] = base [m, k], W[:, rest] = base @ coefficients [k, n - k].
    `rest` is rising; `pivots` stand in the order in which the numbers between the two products are best rounded.
    `handover` [k] and `weight` [k]: second moment of each of those numbers, and what an error of one there costs,
    twice the KL, in nats per token.
    """

    columns: bool
    pivots: torch.Tensor
    rest: torch.Tensor
    base: Rounded
    coefficients: Rounded
    handover: torch.Tensor
    weight: torch.Tensor

    def matrix(self) -> torch.Tensor:
        """The rounded matrix [m, n], fp32."""
        base, c = dequantise_rows(*self.base), dequantise_rows(*self.coefficients)
        place = torch.argsort(torch.cat([self.pivots, self.rest]))
        if self.columns:
            return torch.cat([base, base @ c], dim=1)[:, place]
        return torch.cat([base, c @ base])[place]


def round_pivoted(
    w: torch.Tensor, b: torch.Tensor, a: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor, *, columns: bool
) -> Pivoted:
    """W [m, n] on the row (or column) space of B A, B [m, k], A [k, n], k < min(m, n); float64, metrics `damped`.

    The pivot rows are rounded first; the coefficients C then minimise tr(C_out E C_in Eᵀ) for the rounded pivot rows,
    so that the other rows make good part of that rounding, and are rounded in turn:
    C = (W_r + O_rr⁻¹ O_rp E_p) C_in Âᵀ (Â C_in Âᵀ)⁻¹ with O = C_out, E_p = W_p - Â.

    Raises:
        Failure: NaN or Inf in a factor or a metric.
    """
    if columns:
        w, b, a, c_in, c_out = w.T, a.T, b.T, c_out, c_in
    pivots, rest = choose_pivots(b, a, c_in)
    target = b[pivots] @ a
    # Scales belong to the rows of the matrix that is stored, which for columns is the transposed one.
    base = round_rows((target.T if columns else target).float().contiguous(), 8)
    rounded = dequantise_rows(*base, torch.float64)
    rounded = rounded.T if columns else rounded
    among = c_out[rest]
    across, among = among[:, pivots], among[:, rest]
    slack = torch.cholesky_solve(across @ (w[pivots] - rounded), cholesky(among))
    projected = rounded @ c_in
    power = projected @ rounded.T
    c = torch.cholesky_solve(projected @ (w[rest] + slack).T, cholesky(power)).T
    mixed = among @ c
    if columns:  # what is handed over is an input and what C adds to it
        own = c_out.diagonal()[pivots]
        handover, weight = own + ((mixed + 2 * across) * c).sum(0), power.diagonal()
    else:
        handover, weight = power.diagonal(), (mixed * c).sum(0)
    order = torch.argsort(handover, descending=True, stable=True)
    c = c[:, order]
    if columns:
        base = (base[0][:, order].contiguous(), base[1])
        coefficients = round_rows(c.T.float().contiguous(), 8)
    else:
        base = (base[0][order], base[1][order])
        coefficients = round_rows(c.float().contiguous(), 8)
    return Pivoted(columns, pivots[order], rest, base, coefficients, handover[order], weight[order])
