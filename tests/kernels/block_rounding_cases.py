"""Holds the search for scales of blocks against a float64 search, and the rounding against its grid; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels.block_rounding import SHRINKS, nearest, search

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SHAPES = ((1, 32, 32), (3, 160, 32), (5, 576, 64), (2, 1536, 128), (1, 4096, 16))
CASES = [
    *((*shape, bits, zero, "float32") for shape in SHAPES for bits in (2, 4, 8) for zero in (0, 1)),
    *((3, 256, 32, 4, 1, dtype) for dtype in ("float16", "bfloat16", "strided", "zeros", "nan")),
]


def error(m: int, n: int, block: int, bits: int, zero: int, variant: str, device: str) -> tuple[float, float]:
    """Loss beyond the least that a float64 search finds, as a share of it; infinity where integers are not nearest."""
    generator = torch.Generator().manual_seed(n)
    w = torch.randn(m, n, generator=generator) * torch.logspace(-2, 2, m)[:, None]
    if variant == "zeros":
        w[1, : 2 * block] = 0
    if variant == "nan":
        w[2, 5] = torch.nan
    w = w.to(DTYPES.get(variant, torch.float32))
    weight, gradient = torch.rand(n, generator=generator), torch.randn(m, n, generator=generator)
    there = w.to(device)
    if variant == "strided":
        there = there.T.contiguous().T
    grid = search(there, weight.to(device), bits, block, bool(zero))
    q, change = (None if part is None else part.cpu() for part in nearest(there, grid, gradient.to(device)))
    assert q is not None and change is not None
    if variant == "nan":
        return float((change.isnan() != w.isnan().any(1)).sum()), 0.0
    scale = grid.scale().cpu().double().repeat_interleave(block, 1)
    centre = grid.zero.cpu().double().repeat_interleave(block, 1)
    made = (q.double() - centre) * scale
    top = 2**bits - 1
    ideal = (w.double() / scale + centre).clamp(0, top)
    if float((q.double() - ideal).abs().max()) > 0.5 + 1e-5 * 2**bits or int(q.max()) > top:
        return float("inf"), 0.0
    wanted = (gradient.double() * (made - w.double())).sum(1)
    size = (gradient.double() * w.double()).square().sum(1).sqrt().clamp_min(1e-30)
    if float(((change - wanted) / size).abs().max()) > 1e-5:
        return float("inf"), 0.0
    loss = ((made - w.double()).square() * weight.double()).sum()
    least = (least_loss(w.double(), weight.double(), grid.row.cpu().double(), bits, block, bool(zero))).sum()
    return float((loss - least) / least), 1e-4


def least_loss(
    w: torch.Tensor, weight: torch.Tensor, row: torch.Tensor, bits: int, block: int, zero: bool
) -> torch.Tensor:
    """Of every block, one at a time."""
    top, middle, found = 2**bits - 1, 2 ** (bits - 1), []
    for i, line in enumerate(w):
        for start in range(0, len(line), block):
            part, g = line[start : start + block], weight[start : start + block]
            low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
            full = (high - low) / top if zero else max(high / (top - middle), -low / middle)
            losses = []
            for shrink in SHRINKS:
                step = min(max(round(full * shrink * 255 / float(row[i])), 1), 255) * float(row[i]) / 255
                centre = min(max(round(-low * shrink / step), 0), top) if zero else middle
                q = ((part / step).round() + centre).clamp(0, top)
                losses.append(float((((q - centre) * step - part).square() * g).sum()))
            found.append(min(losses))
    return torch.tensor(found, dtype=torch.float64)
