"""Holds `round_rows` against rounding written out in float64; see `harness`."""

from __future__ import annotations

import torch

from edge_svd.kernels.row_rounding import round_rows

SHAPES = ((1, 1), (5, 123), (3, 576), (2, 1536), (3, 4099))
DTYPES = ("float32", "float16", "bfloat16")
CASES = [
    *((*shape, dtype, limit, "plain") for shape in SHAPES for dtype in DTYPES for limit in (127, 32512)),
    *((4, 123, "float32", 127, variant) for variant in ("strided", "zeros", "nan", "infinity", "ties")),
]


def error(m: int, n: int, dtype: str, limit: int, variant: str, device: str) -> tuple[float, float]:
    """How far integers are from the float64 ones beyond a tie's rounding, and sums from theirs."""
    generator = torch.Generator().manual_seed(n)
    w = torch.randn(m, n, generator=generator) * torch.logspace(-3, 3, m)[:, None]
    if variant == "zeros":
        w[1] = 0
    if variant in ("nan", "infinity"):
        w[2, n // 2] = torch.nan if variant == "nan" else -torch.inf
    if variant == "ties":
        w = torch.randint(-254, 255, (m, n), generator=generator) / 2.0
        w[:, 0] = 127.0
    w = w.to(getattr(torch, dtype))
    gradient = torch.randn(m, n, generator=generator)
    there, slope = w.to(device), gradient.to(device)
    if variant == "strided":
        there, slope = there.T.contiguous().T, slope.T.contiguous().T
    found = round_rows(there, limit, slope)
    q, scale = found.q.cpu(), found.scale.cpu().float()
    assert found.change is not None
    change = found.change.cpu()
    if variant in ("nan", "infinity"):
        bad = ~torch.isfinite(w.float()).all(1)
        return float((~torch.isfinite(scale) != bad).sum() + (~torch.isfinite(change) != bad).sum()), 0.0
    exact = w.double() / scale.double()[:, None]
    least = (w.double().abs().amax(1) / limit).float()
    tight = (scale >= least) & ((scale <= least * (1 + 2**-7)) | (least == 0))
    if variant == "zeros":
        tight[1] = scale[1] == 1
    wanted = (gradient.double() * (q.double() * scale.double()[:, None] - w.double())).sum(1)
    size = (gradient.double() * w.double()).square().sum(1).sqrt().clamp_min(1e-30)
    off = max(float((q.double() - exact.round()).abs().max()), float(((change - wanted) / size).abs().max()) * 1e5)
    near = float((q.double() - exact).abs().max()) <= 0.5 + limit * 1e-7
    right = bool(tight.all()) and near and int(q.abs().max()) <= limit
    return off if right else float("inf"), 1.0 if limit > 127 else 0.3
