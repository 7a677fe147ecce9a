"""The decomposition behind every whitened method: SVD of F_outᵀ W F_in, both sides undone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from edge_svd.compute_device import compute_device
from edge_svd.decompose.factorization import Factorization, Matrix, Split, as_matrix, balanced, split_together
from edge_svd.decompose.metrics import Measured
from edge_svd.decompose.whitening import Whitening
from edge_svd.errors import InputError


@dataclass(frozen=True)
class Sides:
    """The metrics in which a matrix is decomposed, None for an identity; `added` as in `Factorization`."""

    into: Whitening | None
    out: Whitening | None
    added: float = 0.0


class TwoSided(ABC):
    """A method that is an SVD between two metrics."""

    @abstractmethod
    def sides(self, w: Matrix, site: Measured) -> Sides:
        """The metrics for a matrix with these statistics; errors as `Decomposition`."""

    def __call__(self, w: Matrix, site: Measured, rank: int | None = None) -> Factorization:
        return between([w], [self.sides(w, site)], rank)[0]


def two_sided(w: Matrix, into: Whitening | None, out: Whitening | None, rank: int | None = None) -> Factorization:
    """Minimises tr(C_out E C_in Eᵀ), E = W - b a, at every rank at once; None stands for an identity metric.

    rank: how many components are wanted; None for all of them.
    """
    return between([w], [Sides(into, out)], rank)[0]


def between(matrices: Sequence[Matrix], sides: Sequence[Sides], rank: int | None = None) -> list[Factorization]:
    """`two_sided` of many matrices, eigenvectors of those of one width from one call.

    Products and eigenvectors are made, and stay, on the device that computes, in float64. With C = F Fᵀ on both sides
    the loss is ‖F_outᵀ E F_in‖_F², so Eckart-Young on M = F_outᵀ W F_in gives every optimum.
    """
    device = compute_device()
    known = [as_matrix(w, "w").to(device) for w in matrices]
    sides = [Sides(_on(of.into, device), _on(of.out, device), of.added) for of in sides]
    seen = [_between(w, of) for w, of in zip(known, sides, strict=True)]
    # A metric of zeros, undamped: nothing matters and nothing is kept.
    live = [i for i, m in enumerate(seen) if 0 not in m.shape]
    split = dict(zip(live, split_together([seen[i] for i in live], rank), strict=True)) if live else {}
    return [_undone(w, of, split.get(i), rank) for i, (w, of) in enumerate(zip(known, sides, strict=True))]


def _on(side: Whitening | None, device: torch.device) -> Whitening | None:
    if side is None:
        return None
    return Whitening(side.factor.to(device), None if side.inverse is None else side.inverse.to(device))


def _between(matrix: torch.Tensor, sides: Sides) -> torch.Tensor:
    """F_outᵀ W F_in."""
    for whitening, width, name in ((sides.into, matrix.shape[1], "c_in"), (sides.out, matrix.shape[0], "c_out")):
        if whitening is not None and whitening.width != width:
            raise InputError(
                f"The metric {name} is {whitening.width} wide and does not fit a {list(matrix.shape)} matrix."
            )
    m = matrix if sides.into is None else matrix @ sides.into.factor
    return m if sides.out is None else sides.out.factor.T @ m


def _undone(w: torch.Tensor, sides: Sides, split: Split | None, rank: int | None) -> Factorization:
    """Components of W from those between the metrics."""
    rank = min(w.shape) if rank is None else min(*w.shape, rank)
    if split is None:
        return Factorization(w.new_zeros(w.shape[0], rank), w.new_zeros(rank, w.shape[1]), w.new_zeros(rank))
    u, v, energy = split
    b = u if sides.out is None else sides.out.undo(u.T).T
    a = v if sides.into is None else sides.into.undo(v)
    return replace(balanced(b.contiguous(), a, energy, rank), added=sides.added)
