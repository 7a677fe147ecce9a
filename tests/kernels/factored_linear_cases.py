"""Holds `factored_linear` against a float64 product of the numbers that are stored; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels.factored_linear import factored_linear
from edge_svd.kernels.rank_components import Components, Part

# Relative to the largest output. 16-bit inputs have their intermediate rounded to their own dtype once, and the output.
TOLERANCE = {"float32": 5e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
SHAPES = ((1, 1, 1), (5, 123, 7), (123, 5, 40), (576, 576, 33))
CASES = [
    *((r, *s, d, v) for r in (1, 3, 16) for s in SHAPES for d in TOLERANCE for v in ("mixed",)),
    *((r, 123, 70, 40, d, v) for r in (2, 37) for d in TOLERANCE for v in ("int8", "plain", "chosen", "strided")),
    *((37, *s, "float16", "mixed") for s in SHAPES[:3]),
    (70, 130, 66, 129, "float32", "mixed"),
    (1, 1536, 576, 40, "float16", "mixed"),
    (1, 576, 1536, 40, "bfloat16", "mixed"),
    (1, 4099, 33, 17, "float32", "mixed"),
    (17, 33, 4099, 17, "float32", "mixed"),
    *((r, 40, 30, 20, "float32", "nan") for r in (4, 20)),
]


def error(rows: int, n: int, m: int, k: int, dtype: str, variant: str, device: str) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(n)
    kind = getattr(torch, dtype)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    whole = k if variant in ("int8",) else 0 if variant == "plain" else -(-k // 3)
    parts = []
    if whole:
        a, b = ((30 * numbers(whole, width)).clamp(-127, 127).to(torch.int8) for width in (n, m))
        parts.append(Part(a.to(device), b.to(device), (torch.rand(whole, generator=generator) / 900).to(device)))
    if whole < k:
        stored = torch.float16 if variant == "mixed" else kind  # 16-bit components under inputs of another dtype too
        a, b = (numbers(k - whole, width).to(stored).to(device) for width in (n, m))
        parts.append(Part(a, b))
    picks = None
    if variant == "chosen":
        picks = [torch.randperm(len(p.a), generator=generator)[: len(p.a) // 2 + 1].to(device) for p in parts[:1]]
        picks = [*picks, None][: len(parts)]
    x = numbers(rows, n).to(kind)
    if variant == "nan":
        x[2, n // 2] = torch.nan
    bias = numbers(m)
    there = x.to(device)
    if variant == "strided":
        there = torch.stack([there.T, there.T], dim=-1)[..., 0].T
        parts = [Part(p.a.T.contiguous().T, p.b.T.contiguous().T, p.scale) for p in parts]
    y = factored_linear(there, Components(tuple(parts)), bias.to(device), picks).cpu()
    if y.dtype != kind:
        return float("inf"), 0.0
    if variant == "nan":
        return float((y.isnan().all(1) != x.isnan().any(1)).sum() + (y.isnan().any(1) != x.isnan().any(1)).sum()), 0.0
    expected = bias.double().expand(rows, m).clone()
    for number, part in enumerate(parts):
        pick = slice(None) if picks is None or picks[number] is None else picks[number].cpu()
        a, b = part.a.cpu().double()[pick], part.b.cpu().double()[pick]
        if part.scale is not None:
            a = a * part.scale.cpu().double()[pick][:, None]
        expected += x.double() @ a.T @ b
    return float((y - expected).abs().max() / expected.abs().max()), TOLERANCE[dtype]
