"""Holds `kl_seeds` against float64 softmax; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels import kl_seeds

WIDTHS = (1, 5, 123, 4096, 4099, 9000)
DTYPES = ("float32", "float16", "bfloat16")
TOKENS = 19
# Absolute, of probabilities: fp32 exponentials and sums.
TOLERANCE = 2e-6
CASES = [
    *((w, d, v) for w in WIDTHS for d in DTYPES for v in ("sampled", "top")),
    *((w, "float32", v) for w in (123, 4099) for v in ("strided", "slope", "one slope", "half", "minus infinity")),
    *((w, "float32", v) for w in (5, 4099) for v in ("nan", "draws", "variance")),
]


def error(width: int, dtype: str, variant: str, device: str) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(width)
    logits = (4 * torch.randn(TOKENS, width, generator=generator)).to(getattr(torch, dtype))
    if variant == "minus infinity":
        logits[:, 1::2] = -torch.inf
    if variant == "nan":
        logits[3, width // 2] = torch.nan
    uniform = torch.rand(TOKENS, 1, generator=generator)
    slope = torch.rand(TOKENS, width, generator=generator) if variant == "slope" else None
    slope = torch.tensor(0.25) if variant == "one slope" else slope
    there = logits.to(device)
    if variant == "strided":
        there = torch.stack([there.T, there.T], dim=-1)[..., 0].T
    if variant == "top":
        return top_error(there, min(7, width)), TOLERANCE
    if variant == "draws":
        return draws_error(device), 0.02
    at = None if slope is None else slope.to(device) if slope.ndim else slope
    p = torch.softmax(logits.double(), 1)
    variances = p * (1 - p) * (1.0 if slope is None else slope.double().square())
    if variant == "variance":
        return float((kl_seeds.variance(there).cpu() - variances.sum(0)).abs().max()), TOLERANCE * TOKENS
    dtype_out = torch.bfloat16 if variant == "half" else torch.float32
    seeds, variance = (part.cpu() for part in kl_seeds.sampled(there, uniform.to(device), at, dtype_out))
    if variant == "nan":
        return float((seeds.isnan().any(1) != logits.isnan().any(1)).sum()), 0.0
    if slope is not None:
        seeds = seeds / slope
    drawn = (p - seeds.double()).round().argmax(1)
    wanted = p - torch.nn.functional.one_hot(drawn, width)
    cumulative = p.cumsum(1)
    ends = cumulative.gather(1, drawn[:, None])
    outside = torch.maximum(uniform - ends, ends - p.gather(1, drawn[:, None]) - uniform).clamp_min(0)
    off = max(float((seeds - wanted).abs().max()), float(outside.max()))
    off = max(off, float((variance - variances.sum(0)).abs().max()) / TOKENS)
    return off, 4e-3 if variant == "half" else TOLERANCE


def top_error(logits: torch.Tensor, k: int) -> float:
    """Of the k exact cotangents: Σ_i s_i s_iᵀ against diag p̂ − p̂ p̂ᵀ, and whether the places are the most probable."""
    found = kl_seeds.top(logits, k)
    signs = torch.ones(len(logits), 1, device=logits.device)
    rows = torch.stack([kl_seeds.exact(found, i, signs) for i in range(k)], 1).double().cpu()
    values, _ = logits.double().cpu().topk(k, 1)
    share = torch.softmax(values, 1)
    curvature = torch.diag_embed(share) - share[:, :, None] * share[:, None, :]
    off = float((rows.transpose(1, 2) @ rows - curvature).abs().max())
    places = found.places.cpu()
    distinct = all(len(set(row.tolist())) == k for row in places)
    right = torch.equal(logits.double().cpu().gather(1, places), values)  # equal logits may stand in either order
    return off if distinct and right else float("inf")


def draws_error(device: str) -> float:
    """Largest difference between how often tokens are drawn and their probabilities, over evenly spread numbers."""
    logits = torch.tensor([[0.0, 2.0, -torch.inf, 1.0, 0.5]]).repeat(200, 1)
    uniform = ((torch.arange(200) + 0.5) / 200)[:, None]
    seeds, _ = kl_seeds.sampled(logits.to(device), uniform.to(device))
    p = torch.softmax(logits, 1)
    counts = (p - seeds.cpu()).round().mean(0)
    return float((counts - p[0]).abs().max()) if counts[2] == 0 else float("inf")
