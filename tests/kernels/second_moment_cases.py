"""Holds `second_moment` against a float64 loop over tokens; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels.symmetric import second_moment

WIDTHS = (1, 5, 123, 576)
DTYPES = ("float32", "float16", "bfloat16")
VARIANTS = ("plain", "weight", "mask", "weight+mask", "strided", "twice")
# Relative to the largest element. The reference starts from the same rounded inputs, so only fp32 summation is left
# (about 1e-7 times the root of the number of tokens), whatever the input's dtype.
TOLERANCE = 2e-6
FEW = ("plain", "weight+mask")
CASES = [
    *((w, d, v) for w in WIDTHS for d in DTYPES for v in VARIANTS if w < max(WIDTHS) or v in FEW),
    (1536, "float32", "plain"),  # the interpreter takes seconds for it
    (70, "float32", "nan"),
]


def expected(x: torch.Tensor, weight: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Σ_t w_t x_t x_tᵀ, one token at a time in float64."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for t, row in enumerate(x.cpu().double()):
        if mask is None or bool(mask[t]):
            total += (1.0 if weight is None else float(weight[t])) * torch.outer(row, row)
    return total


def error(width: int, dtype: str, variant: str, device: str) -> tuple[float, float]:
    """Largest difference from `expected`, over the largest expected element; NaN or infinity on faults."""
    if variant == "nan":
        return nan_misplaced(device), 0.0
    generator = torch.Generator().manual_seed(width)
    tokens = 37
    x = torch.randn(tokens, width, generator=generator).to(getattr(torch, dtype)).to(device)
    weight = torch.rand(tokens, generator=generator).to(device) if "weight" in variant else None
    mask = (torch.rand(tokens, generator=generator) < 0.6).to(device) if "mask" in variant else None
    if variant == "strided":
        x = torch.stack([x.T, x.T], dim=-1)[..., 0].T
    if mask is not None:
        x = torch.where(mask[:, None], x, torch.nan)  # what is masked must not matter, even NaN
    result = second_moment(x, weight=weight, mask=mask)
    reference = expected(x, weight, mask)
    if variant == "twice":
        second_moment(x, result)
        reference = 2 * reference
    matrix = result.full().cpu()
    if not torch.equal(matrix, matrix.T):
        return float("inf"), TOLERANCE
    return float((matrix - reference).abs().max() / reference.abs().max()), TOLERANCE


def nan_misplaced(device: str) -> float:
    """0 where a NaN in feature 3 reaches exactly row 3 and column 3."""
    x = torch.ones(9, 70, device=device)
    x[4, 3] = torch.nan
    seen = second_moment(x).full().isnan().cpu()
    wanted = torch.zeros(70, 70, dtype=torch.bool)
    wanted[3, :] = wanted[:, 3] = True
    return float((seen != wanted).sum())
