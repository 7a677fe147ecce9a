"""Second moments of activations: the update of an accumulator, in plain torch or by Triton.

An update reads the activations once for every tile of rows and the upper half of the result once, and writes that:
tokens · n (n + 1) operations.
"""

from __future__ import annotations

import torch

from edge_svd.kernels.dispatch import DTYPES, by_triton
from edge_svd.kernels.layout import UpperLayout
from edge_svd.runtime.errors import InputError


def accumulate(
    buffer: torch.Tensor,
    layout: UpperLayout,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """`reference` by whatever runs on this device; InputError on arguments that do not fit."""
    if x.ndim != 2 or x.shape[1] != layout.n or x.shape[0] == 0:
        raise InputError(f"Activations must be [tokens, {layout.n}] with at least one token, not {list(x.shape)}.")
    if x.dtype not in DTYPES:
        raise InputError(f"Activations must be float32, float16 or bfloat16, not {x.dtype}.")
    for name, extra in (("weights", weight), ("mask", mask)):
        if extra is not None and (extra.shape != (x.shape[0],) or extra.device != x.device):
            raise InputError(f"The {name} must be one value a token on {x.device}, not {list(extra.shape)}.")
    if mask is not None and mask.dtype != torch.bool:
        raise InputError(f"The mask must be boolean, not {mask.dtype}.")
    if buffer.device != x.device:
        raise InputError(f"The accumulator is on {buffer.device} and the activations are on {x.device}.")
    if by_triton(x):
        from edge_svd.kernels import second_moment_triton

        second_moment_triton.accumulate(buffer, layout, x, weight, mask)
    else:
        reference(buffer, layout, x, weight, mask)


def reference(
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
