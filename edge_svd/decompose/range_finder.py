"""The first components of a wide matrix, without the eigenvectors of all others, and a proof that they are the first.

Halko, Martinsson and Tropp 2011, "Finding structure with randomness", section 4 (the range finder); Musco and Musco
2015, "Randomized block Krylov methods for stronger and faster approximate singular value decomposition", Algorithm 2
(what makes it sharp where singular values fall slowly).
"""

from __future__ import annotations

import torch

from edge_svd.decompose.eigenvectors import eigh

WIDTH = 1024
"""From this many rows and columns on; below, LAPACK has all eigenvectors in a fraction of a second."""

SHARE = 8
"""Asked for at most one component in so many."""

TOLERANCE = 1e-3
"""The loss of the truncation is at most this share above the least loss of that rank."""

NOTHING = 1e-12
"""Losses below this share of ‖M‖² are rounding."""

STEPS = 8
"""Blocks of the Krylov space before it is given up."""


def worth_it(m: int, n: int, rank: int) -> bool:
    """Whether the first `rank` components of an [m, n] matrix are looked for here."""
    return min(m, n) >= WIDTH and 0 < rank * SHARE <= min(m, n)


def first_directions(gram: torch.Tensor, rank: int, tolerance: float = TOLERANCE, seed: int = 0) -> torch.Tensor | None:
    """Orthonormal Q [m, rank], the largest direction first, for gram = M Mᵀ, float64 [m, m], with the certainty that

        ‖M - Q Qᵀ M‖² ≤ (1 + tolerance) · min ‖M - any matrix of that rank‖² + `NOTHING` · ‖M‖².

    None where that could not be shown in `STEPS` steps.

    With θ the Rayleigh quotients of Q in G = M Mᵀ and C the compression of G to the complement of Q, Ky Fan's
    inequality bounds the sum of the `rank` largest eigenvalues by Σ max(θ_i, λ_max(C)) + √rank · ‖G Q - Q diag(θ)‖_F.
    λ_max(C) < c is settled by one Cholesky factorisation: only then c I - C has a factor.
    """
    m = len(gram)
    width = rank + max(8, rank // 8)
    total = float(gram.diagonal().sum())
    # Drawn on the CPU, so that every device starts from the same numbers.
    start = torch.randn(m, width, generator=torch.Generator().manual_seed(seed), dtype=gram.dtype).to(gram.device)
    block = torch.linalg.qr(gram @ start)[0]
    basis = images = gram.new_empty(m, 0)
    for step in range(min(STEPS, m // width)):
        image = gram @ block
        basis, images = torch.cat([basis, block], 1), torch.cat([images, image], 1)
        if step:
            values, vectors = eigh(basis.T @ images)
            q, gq = (side @ vectors[:, -rank:].flip(1) for side in (basis, images))
            theta = values[-rank:].flip(0)
            allowed = tolerance / (1 + tolerance) * max(total - float(theta.sum()), 0.0) + NOTHING * total
            residual = rank**0.5 * float((gq - q * theta).norm())
            if residual <= allowed / 2 and _below(gram, q, gq, theta, float(theta[-1]) + allowed / (2 * rank)):
                return q
        block = image
        for _ in range(2):  # the second time takes out what rounding left in
            block = torch.linalg.qr(block - basis @ (basis.T @ block))[0]
    return None


def _below(gram: torch.Tensor, q: torch.Tensor, gq: torch.Tensor, theta: torch.Tensor, bound: float) -> bool:
    """Whether all eigenvalues of (I - Q Qᵀ) G (I - Q Qᵀ) are below the bound."""
    half = gq - q * (theta / 2)  # G Q Qᵀ + Q Qᵀ G - Q diag(θ) Qᵀ in two products
    rest = -gram
    rest.addmm_(half, q.T).addmm_(q, half.T)
    rest.diagonal().add_(bound)
    return int(torch.linalg.cholesky_ex(rest)[1]) == 0
