"""A linear layer kept as two factors."""

from __future__ import annotations

import torch


class FactoredLinear(torch.nn.Module):
    """y = B (A x) + bias: `b` [m, k], `a` [k, n] fp32, x [..., n]."""

    def __init__(self, b: torch.Tensor, a: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.b = torch.nn.Parameter(b, requires_grad=False)
        self.a = torch.nn.Parameter(a, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b, self.bias)
