"""The decomposition behind every whitened method: SVD of F_outᵀ W F_in, both sides undone."""

from __future__ import annotations

from edge_svd.compute_device import compute_device
from edge_svd.decompose.factorization import Factorization, Matrix, as_matrix, balanced, split
from edge_svd.decompose.whitening import Whitening
from edge_svd.errors import InputError


def two_sided(w: Matrix, into: Whitening | None, out: Whitening | None, rank: int | None = None) -> Factorization:
    """Minimises tr(C_out E C_in Eᵀ), E = W - b a, at every rank at once; None stands for an identity metric.

    rank: how many components are wanted; None for all of them.

    Products and eigenvectors are made where the metrics are (`whiten`: on a CUDA card where there is one), in float64.
    With C = F Fᵀ on both sides that is ‖F_outᵀ E F_in‖_F², so Eckart-Young on M = F_outᵀ W F_in gives every optimum.
    """
    matrix = as_matrix(w, "w")
    for whitening, width, name in ((into, matrix.shape[1], "c_in"), (out, matrix.shape[0], "c_out")):
        if whitening is not None and whitening.width != width:
            raise InputError(
                f"The metric {name} is {whitening.width} wide and does not fit a {list(matrix.shape)} matrix."
            )
    rank = min(matrix.shape) if rank is None else min(*matrix.shape, rank)
    device = next((side.factor.device for side in (into, out) if side is not None), compute_device())
    m = matrix.to(device)
    m = m if into is None else m @ into.factor
    m = m if out is None else out.factor.T @ m
    if 0 in m.shape:  # a metric of zeros, undamped: nothing matters and nothing is kept
        zero = matrix.new_zeros
        return Factorization(zero(matrix.shape[0], rank), zero(rank, matrix.shape[1]), zero(rank))
    u, v, energy = split(m, rank)
    b = u if out is None else out.undo(u.T).T
    a = v if into is None else into.undo(v)
    return balanced(b.contiguous().cpu(), a.cpu(), energy.cpu(), rank)
