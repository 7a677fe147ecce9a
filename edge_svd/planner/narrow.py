"""Errors of a whole model's matrices, held in a quarter of their bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edge_svd.formats import INT8_LIMIT


@dataclass(frozen=True)
class Narrow:
    """An error matrix [m, n] in int8, a quarter of its bytes, because those of the whole model are held at once.

    With a scale a row and one a column: errors are a thousand times smaller where inputs are massive, and a step that
    fits the other columns would drown them.
    """

    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def of(cls, error: torch.Tensor) -> Narrow:
        columns = error.square().mean(0).sqrt_().clamp_min_(1e-30)
        level = error / columns
        rows = level.abs().amax(1, keepdim=True).clamp_min_(1e-30) / INT8_LIMIT
        return cls((level / rows).round_().to(torch.int8), rows[:, 0], columns)

    def to(self, device: torch.device | str) -> Narrow:
        """The same there."""
        return Narrow(self.values.to(device), self.rows.to(device), self.columns.to(device))

    def matrix(self) -> torch.Tensor:
        """The errors, fp32 [m, n]."""
        return (self.values * self.rows[:, None]).mul_(self.columns)

    def moved(self, x: torch.Tensor) -> torch.Tensor:
        """E x for x [tokens, n]: fp32 [tokens, m], the product in bfloat16."""
        return ((x * self.columns).to(torch.bfloat16) @ self.values.to(torch.bfloat16).T).float() * self.rows
