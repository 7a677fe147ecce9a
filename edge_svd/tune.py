"""Byte-neutral distillation: after rounding, the scales that are stored anyway are trained against the dense model.

Every rounded matrix has a scale a row and every norm a weight a channel. Their relative changes are trained by Adam on
KL(dense ‖ rounded) of the calibration windows, one window a step, and written back into the same bytes. The integers
stay as they are. What does not help on windows that were held out is not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.architectures import norms_of
from edge_svd.calibrate.collect import LOGIT_BLOCK, logits_of, pull_back
from edge_svd.checkpoint import Checkpoint, save_weights
from edge_svd.errors import Failure
from edge_svd.loading import load
from edge_svd.models import OpenedModel
from edge_svd.planner.correction import HeldOutKl

RATE = 2e-3
"""Largest relative change of a scale in one step."""

SCALES = {"int8": "s8", "int16": "s16", "trellis": "s8", "blocks": "s8"}
"""Kinds whose rows have a scale each → its suffix."""


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
    """Train the scales of the checkpoint at `path` on `windows` int64 [count, length] and write them back.

    Raises:
        Failure: NaN or Inf on the way.
    """
    softcap = opened.architecture.logit_softcap
    student = load(path)
    checkpoint = Checkpoint.open(path)
    changes = _changes(checkpoint)
    parameters = list(changes.values())
    optimiser = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: 0.5 * (1 + math.cos(math.pi * at / steps)))
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    measured = HeldOutKl(opened.model, held, softcap)
    measured.model = student
    before = measured.measure()
    with _applied(student, changes):
        for at in range(steps):
            ids = windows[order[at % len(order)]]
            optimiser.zero_grad(set_to_none=True)
            _pull(opened.model, student, ids, softcap, precision)
            optimiser.step()
            schedule.step()
            progress(at + 1, steps)
        after = measured.measure()
    if not all(torch.isfinite(change).all() for change in parameters):
        raise Failure("Tuning the scales gave NaN or Inf; the checkpoint keeps what it had.")
    kept = after < before
    if kept:
        _write(checkpoint, changes)
    return Tuned(before, after, kept)


def _changes(checkpoint: Checkpoint) -> dict[str, torch.nn.Parameter]:
    """Stored tensor → its relative change, zero at first."""
    found = {}
    for site in checkpoint.sites:
        vocabulary = site.type in ("embedding", "lm_head")
        kind = "" if vocabulary or site.tied_to else checkpoint.formats[site.name].kind
        if kind in SCALES and f"{site.name}.bias" not in checkpoint.names:
            found[f"{site.name}.{SCALES[kind]}"] = torch.nn.Parameter(torch.zeros(site.shape[0]))
    for name in norms_of(checkpoint.architecture):
        found[name] = torch.nn.Parameter(torch.zeros(checkpoint.tensor(name).shape))
    return found


@contextmanager
def _applied(model: Any, changes: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Outputs of matrices and norms scaled by 1 + change, which is what changed scales and weights do."""
    handles = []
    for name, change in changes.items():
        module = model.get_submodule(name.rpartition(".")[0])
        handles.append(module.register_forward_hook(lambda _, __, output, change=change: output * (1 + change)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pull(dense: Any, student: Any, ids: torch.Tensor, softcap: float, precision: str) -> None:
    """Gradients of the mean KL over one window, into the changes."""
    half = precision == "bfloat16"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        target = dense.model(input_ids=ids[None], use_cache=False).last_hidden_state[0].float()
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        hidden = student.model(input_ids=ids[None], use_cache=False).last_hidden_state
    pull = torch.empty_like(hidden[0], dtype=torch.float32)
    with torch.no_grad():
        for start in range(0, len(ids), LOGIT_BLOCK):
            block = slice(start, start + LOGIT_BLOCK)
            p = torch.softmax(logits_of(dense, target[block], softcap)[0], dim=-1)
            logits, slope = logits_of(student, hidden[0, block].float(), softcap)
            seed = (torch.softmax(logits, dim=-1) - p) / len(ids)
            pull[block] = pull_back(student, seed, slope, precision)
    hidden.backward(pull[None].to(hidden.dtype))


def _write(checkpoint: Checkpoint, changes: Mapping[str, torch.nn.Parameter]) -> None:
    """Rewrite the files that hold changed tensors, each atomically."""
    stems: dict[str, list[str]] = {}
    for name in checkpoint.names:
        stems.setdefault(checkpoint.files[name], []).append(name)
    for file, names in stems.items():
        if not any(name in changes for name in names):
            continue
        tensors = {name: checkpoint.tensor(name) for name in names}
        for name in names:
            if name in changes:
                scaled = tensors[name].astype(np.float32) * (1 + changes[name].detach().numpy())
                tensors[name] = scaled.astype(tensors[name].dtype)
        save_weights(checkpoint.path, file.removesuffix(".safetensors"), tensors)
