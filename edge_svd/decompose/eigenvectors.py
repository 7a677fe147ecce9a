"""Eigenvectors of symmetric matrices, or one sentence about why there are none."""

from __future__ import annotations

import torch

from edge_svd.errors import Failure


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (rising) [..., n] and orthonormal eigenvectors [..., n, n] of symmetric float64 matrices of one
    width, in one call of the library (cuSOLVER's batched routines on a card); Failure if LAPACK gives none."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        if matrix.ndim > 2:
            found = [eigh(one) for one in matrix]
            return torch.stack([values for values, _ in found]), torch.stack([vectors for _, vectors in found])
        try:  # a different LAPACK routine; a symmetric matrix's left singular vectors are its eigenvectors
            vectors = torch.linalg.svd(matrix)[0].flip(1)
            values = ((matrix @ vectors) * vectors).sum(0)
        except torch.linalg.LinAlgError as error:
            raise Failure(f"LAPACK found no eigenvectors of a {matrix.shape[-1]}-wide symmetric matrix.") from error
    if not bool(torch.isfinite(values).all() and torch.isfinite(vectors).all()):
        raise Failure(f"LAPACK returned eigenvectors that are not finite for a {matrix.shape[-1]}-wide matrix.")
    return values, vectors
