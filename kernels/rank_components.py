"""Rank components of W ≈ B A as kernels hold them, some in int8 with a scale and some in 16 or 32 bits.

Component r is row r of A and column r of B. Both lie component by component, A as [k, n] and B as [k, m], so that a
component's m + n numbers are two contiguous runs: choosing components is choosing rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton, require, require_together
from edge_svd.runtime.errors import InputError


@dataclass(frozen=True)
class Part:
    """k components of one precision: a [k, n] and b [k, m] both int8, with scale fp32 [k], or both fp32, fp16 or bf16,
    with none."""

    a: torch.Tensor
    b: torch.Tensor
    scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        dtypes = DTYPES if self.scale is None else (torch.int8,)
        require(self.a, "components' rows of A", (None, None), dtypes)
        require(self.b, "components' columns of B", (len(self.a), None), (self.a.dtype,))
        if self.scale is not None:
            require(self.scale, "components' scales", (len(self.a),), (torch.float32,))
        require_together(self.a, columns=self.b, scales=self.scale)

    @property
    def nbytes(self) -> int:
        """Of numbers and scales."""
        return self.a.nbytes + self.b.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def product(self) -> torch.Tensor:
        """B A fp32 [m, n]."""
        a = self.a.float() if self.scale is None else self.a.float() * self.scale[:, None]
        return self.b.float().T @ a


@dataclass(frozen=True)
class Components:
    """All components of a matrix, one part a precision; W ≈ the sum of their products."""

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("A factored matrix needs at least one rank component.")
        first = self.parts[0]
        for part in self.parts[1:]:
            if part.a.shape[1] != first.a.shape[1] or part.b.shape[1] != first.b.shape[1]:
                raise InputError("The parts of a factored matrix must have the same inputs and outputs.")
            require_together(first.a, components=part.a)

    @property
    def shape(self) -> tuple[int, int]:
        """[m, n] of the matrix."""
        return self.parts[0].b.shape[1], self.parts[0].a.shape[1]

    @property
    def rank(self) -> int:
        """Components of all parts."""
        return sum(len(part.a) for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts)

    def product(self) -> torch.Tensor:
        """fp32 [m, n]."""
        made = self.parts[0].product()
        for part in self.parts[1:]:
            made += part.product()
        return made


def gather(part: Part, chosen: torch.Tensor) -> Part:
    """The chosen components, copied into contiguous factors (expert memory aggregation): 2 · k (m + n) numbers moved.

    chosen: int32 or int64 [k], in whatever order, on the components' device. InputError on an index out of range.
    """
    check_chosen(part, chosen)
    if by_triton(part.a):
        from edge_svd.kernels import rank_components_triton

        a, b = rank_components_triton.gather(part.a, part.b, chosen)
    else:
        a, b = part.a.index_select(0, chosen), part.b.index_select(0, chosen)
    return Part(a, b, None if part.scale is None else part.scale.index_select(0, chosen))


def check_chosen(part: Part, chosen: torch.Tensor) -> None:
    """InputError unless these are indices of components."""
    require(chosen, "chosen components", (None,), (torch.int32, torch.int64))
    require_together(part.a, chosen=chosen)
    low, high = (int(end) for end in chosen.aminmax())
    if low < 0 or high >= len(part.a):
        raise InputError(f"Components {low} to {high} were chosen of {len(part.a)}.")
