"""Holds the gathering of rank components against plain indexing; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels.rank_components import Part, gather

SHAPES = ((1, 1, 1), (5, 123, 7), (123, 5, 40), (30, 1536, 576), (9, 4099, 1025))
CASES = [
    (*shape, dtype, lie) for shape in SHAPES for dtype in ("int8", "float16", "bfloat16", "float32") for lie in (0, 1)
]


def error(k: int, n: int, m: int, dtype: str, strided: int, device: str) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(k)

    def numbers(width: int) -> torch.Tensor:
        made = (20 * torch.randn(k, width, generator=generator)).to(getattr(torch, dtype)).to(device)
        return made.T.contiguous().T if strided else made

    scale = torch.rand(k, generator=generator).to(device) if dtype == "int8" else None
    part = Part(numbers(n), numbers(m), scale)
    chosen = torch.randperm(k, generator=generator)[: max(1, k // 2)]
    found = gather(part, chosen.to(device).to(torch.int32 if k % 2 else torch.int64))
    same = torch.equal(found.a.cpu(), part.a.cpu()[chosen]) and torch.equal(found.b.cpu(), part.b.cpu()[chosen])
    if scale is not None and found.scale is not None:
        same = same and torch.equal(found.scale.cpu(), scale.cpu()[chosen])
    return float(not (same and found.a.is_contiguous() and found.b.is_contiguous())), 0.0
