"""The second moment in plain torch: what every other implementation is held against."""

from __future__ import annotations

import torch

from edge_svd.kernels.layout import UpperLayout


def accumulate(
    buffer: torch.Tensor,
    layout: UpperLayout,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """buffer += the upper strips of Σ_t w_t x_t x_tᵀ, in place and in fp32.

    buffer: float32 [layout.size]; x: [tokens, n] fp32, fp16 or bf16; weight: [tokens], not negative; mask: bool
    [tokens], False leaves a token out whatever it holds. A NaN in x or weight reaches the buffer.
    """
    rows = x.detach().to(torch.float32)
    if mask is not None:
        rows = torch.where(mask[:, None], rows, 0.0)
        if weight is not None:
            weight = torch.where(mask, weight, 0.0)
    if weight is not None:
        # The square root goes on both sides: (w·x)ᵀx is neither symmetric nor positive once it is rounded.
        rows = rows * weight.detach().to(torch.float32).sqrt()[:, None]
    for start in layout.starts:
        count, offset = layout.rows(start), layout.offset(start)
        width = layout.n - start
        strip = buffer[offset : offset + count * width].view(count, width)
        strip.addmm_(rows[:, start : start + count].T, rows[:, start:])
