"""Where models are calibrated and evaluated: on a CUDA card where PyTorch sees one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from edge_svd.errors import InputError
from edge_svd.streaming.on_demand import is_streamed

VARIABLE = "EDGE_SVD_DEVICE"


def compute_device() -> torch.device:
    """`cuda` where there is one, else `cpu`; EDGE_SVD_DEVICE overrides. InputError where that names none of this
    machine's."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):  # no such device, or PyTorch was built without it
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"{VARIABLE}={wanted!r} names no device that can compute here; it may be cpu or cuda.")
    return device


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a CUDA card."""
    return int(torch.cuda.mem_get_info(device)[0])


def placed(model: Any) -> Any:
    """The model, moved there; one whose weights stay in their files stays on the CPU."""
    return model if is_streamed(model) else model.to(compute_device())


@contextmanager
def computing(model: Any) -> Iterator[torch.device]:
    """The model is there for as long as this is open, and afterwards where it was before; gives the device."""
    before = model.device
    placed(model)
    try:
        yield model.device
    finally:
        if not is_streamed(model):
            model.to(before)
