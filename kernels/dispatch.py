"""The one place that decides which implementation of a kernel runs."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable

import torch

from edge_svd.kernels import reference
from edge_svd.kernels.layout import UpperLayout
from edge_svd.runtime.errors import InputError

VARIABLE = "EDGE_SVD_KERNELS"
CHOICES = ("reference", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Accumulate = Callable[
    [torch.Tensor, UpperLayout, torch.Tensor, torch.Tensor | None, torch.Tensor | None],
    None,
]


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def choose(device: torch.device) -> str:
    """ "triton" on a CUDA device where Triton is installed, else "reference"; EDGE_SVD_KERNELS overrides.

    Raises InputError where the variable holds an unknown name, or "triton" where Triton cannot run.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *CHOICES):
        raise InputError(f"{VARIABLE}={wanted!r} is unknown; it may be {' or '.join(CHOICES)}, or left unset.")
    if wanted == "triton":
        if not _installed():
            raise InputError(f"{VARIABLE}=triton, but Triton is not installed; pip install 'edge-svd[gpu]' brings it.")
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise InputError(f"{VARIABLE}=triton needs a CUDA card or TRITON_INTERPRET=1; this tensor is on {device}.")
        return "triton"
    return "triton" if not wanted and device.type == "cuda" and _installed() else "reference"


def accumulate(
    buffer: torch.Tensor,
    layout: UpperLayout,
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> None:
    """Checks the arguments once, then runs the chosen implementation of `reference.accumulate`."""
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
    run: Accumulate = reference.accumulate
    if choose(x.device) == "triton":
        from edge_svd.kernels import triton_second_moment

        run = triton_second_moment.accumulate
    run(buffer, layout, x, weight, mask)
