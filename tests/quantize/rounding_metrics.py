"""Metrics and weights to round under."""

from __future__ import annotations

import torch


def metric(n: int, seed: int, power: float = 1.0) -> torch.Tensor:
    """A positive definite matrix with a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return (q * torch.arange(1, n + 1, dtype=torch.float64).pow(-power)) @ q.T


def weights(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
