"""Byte-neutral distillation: after rounding, the scales that are stored anyway are trained against the dense model.

Every rounded matrix has a scale a row, a block or a rank component, and every norm a weight a channel. Their relative
changes are trained by Adam on KL(dense ‖ rounded) of the calibration windows, one window a step, and written back into
the same bytes. The integers stay as they are. What does not help on windows that were held out is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

from edge_svd.architectures import Architecture, norms_of
from edge_svd.checkpoint import Checkpoint, save_weights
from edge_svd.distillation import pull_towards
from edge_svd.errors import Failure
from edge_svd.formats import BLOCK_STEPS
from edge_svd.loading import load
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import HeldOutKl

RATE, BLOCK_RATE = 2e-3, 5e-4
"""Largest relative change in one step, of a scale and of one that few weights share, whose gradients are noisier."""

OUTPUTS = {"int8": "s8", "int16": "s16", "trellis": "s8", "blocks": "s8", "column-pivoted": "s8"}
"""Kinds that have a scale an output → its suffix."""

COMPONENTS = {"low-rank": (4, 8, 16), "row-pivoted": (8,)}
"""Kinds that have a scale a row of A → the bits of the components, in A's order."""


@dataclass(frozen=True)
class Tuned:
    """KL to the dense model on held-out windows, nats per token, before and after; whether the change was kept."""

    before: float
    after: float
    kept: bool


def tune(
    opened: OpenedModel,
    path: Path,
    windows: torch.Tensor,
    held: torch.Tensor,
    *,
    steps: int,
    seed: int = 0,
    precision: str = "float32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tuned:
    """Train the scales and norms of the checkpoint at `path` on `windows` int64 [count, length] and write them back.

    Raises:
        Failure: NaN or Inf on the way.
    """
    architecture = opened.architecture
    student = load(path)
    checkpoint = Checkpoint.open(path)
    changes = _changes(checkpoint)
    parameters = [change.parameter for change in changes.values()]
    groups = [{"params": [change.parameter], "lr": change.rate} for change in changes.values()]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: 0.5 * (1 + math.cos(math.pi * at / steps)))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    measured = HeldOutKl(opened.model, held, architecture)
    measured.model = student
    before = measured.measure()
    with _applied(student, changes):
        for at in range(steps):
            ids = windows[order[at % len(order)]]
            optimiser.zero_grad(set_to_none=True)
            _pull(opened.model, student, ids, architecture, precision)
            optimiser.step()
            schedule.step()
            progress(at + 1, steps)
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            raise Failure("Tuning the scales gave NaN or Inf; the checkpoint keeps what it had.")
        made = {name: _stored(checkpoint.tensor(name), change.parameter) for name, change in changes.items()}
        after = measured.measure()
    kept = after < before
    if kept:
        _write(checkpoint, made)
    return Tuned(before, after, kept)


@dataclass(frozen=True)
class _Change:
    """Relative change of one stored tensor, zero at first; where it acts in the student: on what a module gives, or on
    a matrix of the module, row by row or in blocks of so many columns."""

    parameter: torch.nn.Parameter
    module: str
    matrix: str = ""
    block: int = 0

    @property
    def rate(self) -> float:
        return BLOCK_RATE if self.block else RATE


class _Rescaled(torch.nn.Module):
    """A matrix [m, n] with its rows, or its blocks of columns, multiplied by 1 + change."""

    def __init__(self, changes: Sequence[_Change]) -> None:
        super().__init__()
        self.parts = torch.nn.ParameterList(change.parameter for change in changes)
        self.block = changes[0].block

    def forward(self, matrix: torch.Tensor) -> torch.Tensor:
        change = torch.cat(list(self.parts))
        return matrix * (1 + (change.repeat_interleave(self.block, 1) if self.block else change[:, None]))


def _changes(checkpoint: Checkpoint) -> dict[str, _Change]:
    """Stored tensor → its change. The vocabulary's tables and corrected blocks stay as they are."""
    found = {}

    def add(tensor: str, module: str, matrix: str = "", block: int = 0) -> None:
        shape = checkpoint.tensor(tensor).shape
        found[tensor] = _Change(torch.nn.Parameter(torch.zeros(shape)), module, matrix, block)

    for site in checkpoint.sites:
        if site.type in ("embedding", "lm_head") or site.tied_to:
            continue
        fmt = checkpoint.formats[site.name]
        if fmt.kind in OUTPUTS:
            add(f"{site.name}.{OUTPUTS[fmt.kind]}", site.name)
        if fmt.kind == "blocks":
            add(f"{site.name}.u8", site.name, "weight", fmt.block)
        for bits in COMPONENTS.get(fmt.kind, ()):
            if f"{site.name}.s{bits}" in checkpoint.names:
                add(f"{site.name}.s{bits}", site.name, "a")
    assert isinstance(checkpoint.architecture, Architecture)  # encoders are refused before
    for name in norms_of(checkpoint.architecture):
        module, _, tensor = name.rpartition(".")
        if tensor == "weight":
            add(name, module)
    return found


def _rescaling(parameter: torch.nn.Parameter) -> Callable[..., torch.Tensor]:
    """A hook that multiplies what a module gives, but for the bias that it adds, with 1 + parameter."""

    def hook(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        bias = getattr(module, "bias", None)
        return output * (1 + parameter) if bias is None else output + (output - bias) * parameter

    return hook


@contextmanager
def _applied(model: Any, changes: Mapping[str, _Change]) -> Iterator[None]:
    """The student with changed scales and norms."""
    handles: list[Any] = []
    rescaled: dict[tuple[str, str], list[_Change]] = {}
    for change in changes.values():
        module = model.get_submodule(change.module)
        if change.matrix:
            rescaled.setdefault((change.module, change.matrix), []).append(change)
        else:
            handles.append(module.register_forward_hook(_rescaling(change.parameter)))
    for (name, matrix), own in rescaled.items():
        register_parametrization(model.get_submodule(name), matrix, _Rescaled(own))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, matrix in rescaled:
            remove_parametrizations(model.get_submodule(name), matrix, leave_parametrized=False)


def _pull(dense: Any, student: Any, ids: torch.Tensor, architecture: Architecture, precision: str) -> None:
    """Gradients of the mean KL over one window, into the changes."""
    half = precision == "bfloat16"
    body = architecture.layout.body
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half, cache_enabled=False):
        target = dense.get_submodule(body)(input_ids=ids[None], use_cache=False).last_hidden_state[0].float()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = student.get_submodule(body)(input_ids=ids[None], use_cache=False).last_hidden_state
    pull = pull_towards(dense, student, target, hidden[0], architecture, precision)
    hidden.backward(pull[None].to(hidden.dtype))


def _stored(tensor: NDArray[Any], parameter: torch.nn.Parameter) -> NDArray[Any]:
    """A stored tensor with its change, as its dtype can hold it; `parameter` becomes the change that is left."""
    wanted = tensor.astype(np.float32) * (1 + parameter.detach().numpy())
    if tensor.dtype == np.uint8:
        made = np.rint(wanted).clip(1, BLOCK_STEPS).astype(np.uint8)
    else:
        made = wanted.astype(tensor.dtype)
    left = np.divide(made.astype(np.float32), tensor.astype(np.float32), out=np.ones_like(wanted), where=tensor != 0)
    parameter.data = torch.from_numpy(left - 1)
    return made


def _write(checkpoint: Checkpoint, made: Mapping[str, NDArray[Any]]) -> None:
    """Rewrite the files that hold changed tensors, each atomically."""
    stems: dict[str, list[str]] = {}
    for name in checkpoint.names:
        stems.setdefault(checkpoint.files[name], []).append(name)
    for file, names in stems.items():
        if any(name in made for name in names):
            tensors = {name: made[name] if name in made else checkpoint.tensor(name) for name in names}
            save_weights(checkpoint.path, file.removesuffix(".safetensors"), tensors)
