"""`nsvd-i`, `nsvd-ii`, `nid-i`, `nid-ii`: most of the rank fitted to the activations, the rest to the weights alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import scipy.linalg
import torch

from edge_svd.decompose.factorization import Factorization, Matrix, as_matrix, joined
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.registry import DECOMPOSITIONS
from edge_svd.decompose.svd_llm import SvdLlm
from edge_svd.decompose.svd_llm_v2 import SvdLlmV2
from edge_svd.decompose.two_sided import two_sided
from edge_svd.registry import within

SHARE = 0.95
"""k₁ / k as the paper uses it; 0.80 to 0.90 is better far from the calibration text, and worse on it."""

Residual = Callable[[torch.Tensor, int], Factorization]


@dataclass(frozen=True)
class _Nested:
    share: float = SHARE
    needs: ClassVar[tuple[str, ...]] = ("moment",)

    def __post_init__(self) -> None:
        within(self.share, 0.0, 1.0, "parameter share of a nested decomposition")

    def _made(self, w: Matrix, whole: Factorization, residual: Residual) -> Factorization:
        matrix = as_matrix(w, "w").to(whole.b.device)

        @lru_cache(maxsize=2)
        def at(rank: int) -> Factorization:
            first = round(self.share * rank)
            head = whole.prefix(first)
            if first == rank:
                return head
            return joined(head, residual(matrix - head.b @ head.a, rank - first))

        full = at(len(whole.energy))
        return Factorization(full.b, full.a, full.energy, whole.added, at)


def _by_svd(error: torch.Tensor, rank: int) -> Factorization:
    """Least Frobenius error of the residual."""
    return two_sided(error, None, None, rank)


def _by_columns(error: torch.Tensor, rank: int) -> Factorization:
    """Interpolative decomposition: `rank` columns of the residual [m, n] and the coefficients of all n in them, by
    pivoted QR (Martinsson et al. 2011)."""
    scale = float(error.abs().max())
    if scale == 0.0 or rank == 0:
        return two_sided(0 * error, None, None, rank)
    _, r, order = scipy.linalg.qr(error.cpu().numpy() / scale, mode="economic", pivoting=True)
    corner = torch.from_numpy(r[:rank]).to(error.device)
    known = corner[:, :rank]
    # Past the residual's own rank the pivots are rounding noise, and so would be the coefficients.
    found = int((known.diagonal().abs() > 1e-12 * known[0, 0].abs()).sum())
    place = torch.from_numpy(order).long().to(error.device)
    a = error.new_zeros(rank, error.shape[1])
    a[:found, place] = torch.linalg.solve_triangular(known[:found, :found], corner[:found], upper=True)
    b = error.new_zeros(len(error), rank)
    b[:, :found] = error[:, place[:found]]
    return Factorization(b, a, b.square().sum(0) * a.square().sum(1))


@DECOMPOSITIONS.register("nsvd-i")
@dataclass(frozen=True)
class NsvdI(_Nested):
    """NSVD-I: a `share` (0.95) of the rank by SVD-LLM, the rest by the plain SVD of what that leaves of W.

    Lu et al. 2025 (arXiv 2503.17101), eq. 5a and 5b; both parts are one factor pair of rank k. Every rank divides
    anew, so truncations are no prefixes of each other.
    """

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return self._made(w, SvdLlm()(w, site), _by_svd)


@DECOMPOSITIONS.register("nsvd-ii")
@dataclass(frozen=True)
class NsvdIi(_Nested):
    """NSVD-II: as NSVD-I, its first part by SVD-LLM V2.

    Lu et al. 2025 (arXiv 2503.17101), eq. 5a and 5b with Theorem 3.
    """

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return self._made(w, SvdLlmV2()(w, site), _by_svd)


@DECOMPOSITIONS.register("nid-i")
@dataclass(frozen=True)
class NidI(_Nested):
    """NID-I: as NSVD-I, its second part an interpolative decomposition: columns of what the first leaves of W.

    Lu et al. 2025 (arXiv 2503.17101), section 3 and Table 4.
    """

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return self._made(w, SvdLlm()(w, site), _by_columns)


@DECOMPOSITIONS.register("nid-ii")
@dataclass(frozen=True)
class NidIi(_Nested):
    """NID-II: as NID-I, its first part by SVD-LLM V2.

    Lu et al. 2025 (arXiv 2503.17101), section 3 and Theorem 3.
    """

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return self._made(w, SvdLlmV2()(w, site), _by_columns)
