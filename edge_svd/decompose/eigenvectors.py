"""Eigenvectors of a symmetric matrix, or one sentence about why there are none."""

from __future__ import annotations

import torch

from edge_svd.errors import Failure


def eigh(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (rising) and orthonormal eigenvectors of a symmetric float64 matrix; Failure if LAPACK gives none."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        try:  # a different LAPACK routine; a symmetric matrix's left singular vectors are its eigenvectors
            vectors = torch.linalg.svd(matrix)[0].flip(1)
            values = ((matrix @ vectors) * vectors).sum(0)
        except torch.linalg.LinAlgError as error:
            raise Failure(f"LAPACK found no eigenvectors of a {matrix.shape[0]}-wide symmetric matrix.") from error
    if not bool(torch.isfinite(values).all() and torch.isfinite(vectors).all()):
        raise Failure(f"LAPACK returned eigenvectors that are not finite for a {matrix.shape[0]}-wide matrix.")
    return values, vectors
