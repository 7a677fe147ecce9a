"""A weight matrix as a sum of rank components, and the arithmetic every decomposition shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from edge_svd.decompose.eigenvectors import eigh
from edge_svd.decompose.range_finder import first_directions, worth_it
from edge_svd.errors import Failure, InputError

Matrix: TypeAlias = torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Factorization:
    """W = b @ a with r = min(m, n) components in falling order of energy, so that every truncation is a prefix.

    b: [m, r], a: [r, n], float64. energy: [r] float64, σ_i² in the method's own (damped) metric: keeping k components
    loses exactly energy[k:].sum(). Where a metric has directions of zero weight the product equals W only as far as
    the metric can see, and the last components are zero. added: what a method that cannot do without put on the
    diagonal of the input metric, in the metric's units; 0 for the others. of_rank: for methods whose truncations are
    no prefixes of each other, the factors of one rank; their energies belong to the parts, and no tail adds up.
    """

    b: torch.Tensor
    a: torch.Tensor
    energy: torch.Tensor
    added: float = 0.0
    of_rank: Callable[[int], Factorization] | None = None

    def at(self, rank: int) -> Factorization:
        """The factors whose first `rank` components are the method's answer at that rank."""
        return self if self.of_rank is None else self.of_rank(rank)

    def prefix(self, rank: int) -> Factorization:
        """The first components only: b [m, rank], a [rank, n]."""
        return Factorization(self.b[:, :rank], self.a[:rank], self.energy[:rank], self.added)

    def to(self, device: torch.device | str) -> Factorization:
        """The same there, and so are those of other ranks."""
        at = self.of_rank
        moved = None if at is None else lambda rank: at(rank).to(device)
        return Factorization(self.b.to(device), self.a.to(device), self.energy.to(device), self.added, moved)

    def truncated(self, rank: int) -> torch.Tensor:
        """The matrix [m, n] of that rank."""
        found = self.at(rank)
        return found.b[:, :rank] @ found.a[:rank]


def joined(head: Factorization, tail: Factorization) -> Factorization:
    """One factor pair with the components of both, those of `tail` behind; each component balanced."""
    b, a = torch.cat([head.b, tail.b], 1), torch.cat([head.a, tail.a])
    return balanced(b, a, torch.cat([head.energy, tail.energy]), b.shape[1])


def as_matrix(value: Matrix, name: str) -> torch.Tensor:
    """float64, where it is. Raises Failure (named) on NaN or infinity, InputError where it is not a non-empty
    matrix."""
    matrix = torch.as_tensor(value).detach().to(torch.float64)
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(f"The argument {name} must be a matrix with at least one element, not {list(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()):
        raise Failure(f"The argument {name} of the decomposition holds NaN or infinite values.")
    return matrix


Split: TypeAlias = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def split(matrix: torch.Tensor, rank: int | None = None) -> Split:
    """M [m, n] → u [m, r], v [r, n], energy [r] falling, r = min(m, n), M = u @ v; or the first `rank` of them only.

    The basis of the smaller side comes from the Gram matrix (symmetric eigenvectors are orthonormal to machine
    precision however small the singular values are), and the other side by projection. So M = u @ v and
    ‖M - u[:, :k] v[:k]‖² = energy[k:].sum() hold to rounding, with no division by small σ and no failing gesdd.
    A few of a wide matrix are looked for without the others; their loss is within `range_finder.TOLERANCE` of the
    least, for certain.
    """
    return split_together([matrix], rank)[0]


def split_together(matrices: Sequence[torch.Tensor], rank: int | None = None) -> list[Split]:
    """`split` of every matrix; eigenvectors of as many Gram matrices of one width as there are come from one call."""
    scales = [float(matrix.abs().max()) for matrix in matrices]
    # Squares of tiny or huge entries would leave the range of float64.
    units = [matrix / (scale or 1.0) for matrix, scale in zip(matrices, scales, strict=True)]
    grams = [unit @ unit.T if unit.shape[0] <= unit.shape[1] else unit.T @ unit for unit in units]
    bases: list[torch.Tensor | None] = [None] * len(units)
    waiting: dict[int, list[int]] = {}
    for i, (unit, gram) in enumerate(zip(units, grams, strict=True)):
        wanted = min(unit.shape) if rank is None else min(*unit.shape, rank)
        bases[i] = (
            first_directions(gram, wanted) if worth_it(unit.shape[0], unit.shape[1], wanted) and scales[i] else None
        )
        if bases[i] is None:
            waiting.setdefault(len(gram), []).append(i)
    for members in waiting.values():
        for i, vectors in zip(members, eigh(torch.stack([grams[i] for i in members]))[1], strict=True):
            bases[i] = vectors
    return [_projected(*part, rank) for part in zip(units, scales, bases, strict=True)]


def _projected(unit: torch.Tensor, scale: float, basis: torch.Tensor | None, rank: int | None) -> Split:
    """The components of scale · unit along a basis of its smaller side, the largest first."""
    assert basis is not None
    left = unit.shape[0] <= unit.shape[1]
    other = basis.T @ unit if left else unit @ basis
    energy = other.square().sum(1 if left else 0)
    order = torch.argsort(energy, descending=True, stable=True)[:rank]
    energy = energy[order] * scale * scale
    if left:
        return basis[:, order], other[order] * scale, energy
    return other[:, order] * scale, basis.T[order], energy


def balanced(b: torch.Tensor, a: torch.Tensor, energy: torch.Tensor, rank: int) -> Factorization:
    """Scales every component so that ‖b_r‖∞ = ‖a_r‖∞, with zero components up to `rank`.

    Rounding to int8 with one scale a component does not care how a scale is shared between b and a; 16-bit floats and
    a person reading the numbers do.
    """
    left, right = b.abs().amax(0), a.abs().amax(1)
    live = (left > 0) & (right > 0)
    factor = torch.where(live, (right / torch.where(live, left, 1.0)).sqrt(), 0.0)
    inverse = torch.where(live, 1.0 / torch.where(live, factor, 1.0), 0.0)
    missing = rank - b.shape[1]
    pad = torch.nn.functional.pad
    return Factorization(
        b=pad(b * factor, (0, missing)),
        a=pad(a * inverse[:, None], (0, 0, 0, missing)),
        energy=pad(energy, (0, missing)),
    )
