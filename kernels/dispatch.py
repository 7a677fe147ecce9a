"""The one place that decides which implementation of a kernel runs."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from edge_svd.runtime.errors import InputError

VARIABLE = "EDGE_SVD_KERNELS"
CHOICES = ("reference", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


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
        if device.type != "cuda" and not interpreted():
            raise InputError(f"{VARIABLE}=triton needs a CUDA card or TRITON_INTERPRET=1; this tensor is on {device}.")
        return "triton"
    return "triton" if not wanted and device.type == "cuda" and _installed() else "reference"


def by_triton(x: torch.Tensor) -> bool:
    """Whether a kernel over `x` runs as Triton kernel; errors as `choose`."""
    return choose(x.device) == "triton"


def require(tensor: torch.Tensor, name: str, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """InputError unless a kernel's argument has this shape (None: any length, but not 0) and one of these dtypes."""
    fits = tensor.ndim == len(shape) and all(
        size > 0 if wanted is None else size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"The {name} must be [{wanted}] and not empty, not {list(tensor.shape)}.")
    if tensor.dtype not in dtypes:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise InputError(f"The {name} must be {known}, not {str(tensor.dtype).removeprefix('torch.')}.")


def require_together(first: torch.Tensor, **others: torch.Tensor | None) -> None:
    """InputError unless all tensors are on the device of the first."""
    for name, tensor in others.items():
        if tensor is not None and tensor.device != first.device:
            raise InputError(f"The {name} must be on {first.device}, not on {tensor.device}.")
