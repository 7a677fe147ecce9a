"""The streamed, resumable pass over the calibration windows: moments on most of them, gradients on the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from edge_svd.architectures import Architecture, sites_of
from edge_svd.calibrate.collect import Estimator, Moments, add_gradients, add_window, inner_sites
from edge_svd.calibrate.statistics import (
    GRADIENTS,
    HELD_OUT,
    MANIFEST,
    MOMENTS,
    Statistics,
    cache_key,
    manifest_bytes,
    packed,
)
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, writing

HELD_EVERY = 8
"""One window in this many is kept from the moments and used for first-order scores instead."""

SAVE_EVERY = 32
PARTIAL = "partial.safetensors"
OURS = {name for file in (MANIFEST, MOMENTS, GRADIENTS, PARTIAL) for name in (file, f".{file}.tmp")}
"""What an unfinished statistics folder may hold."""

Progress = Callable[[int, int], None]


def split(count: int) -> tuple[list[int], list[int]]:
    """Window numbers for the moments and, disjoint from them, for the gradients; a single window serves both."""
    held = [i for i in range(count) if i % HELD_EVERY == HELD_EVERY - 1] or [count - 1]
    return [i for i in range(count) if i not in set(held)] or held, held


def statistics_key(
    model: str, tokenizer: str, source: str, shape: tuple[int, int], seed: int, estimator: Estimator
) -> dict[str, Any]:
    """Everything that the statistics depend on; equal keys mean equal statistics on one machine."""
    kind = {"kind": estimator.kind, "weighted": estimator.weighted}
    kind |= {"samples": estimator.samples} if estimator.kind == "sampled" else {"k": estimator.k}
    return {
        "model": model,
        "tokenizer": tokenizer,
        "source": source,
        "windows": shape[0],
        "window": shape[1],
        "seed": seed,
        "estimator": kind,
    }


def calibrate(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    key: dict[str, Any],
    out: Path,
    estimator: Estimator,
    progress: Progress = lambda done, total: None,
) -> Statistics:
    """Run the model over windows [count, window] and write the statistics folder `out`; continue it if half done.

    Returns at once where `out` already holds statistics of the same key. Every window draws from its own seeded
    generator, so an interrupted run continues to the same numbers.

    Raises:
        Failure: NaN or Inf in activations, gradients or logits, naming the site; disk full.
        InputError: `out` holds statistics of another key.
    """
    if (out / MANIFEST).exists():
        found = Statistics.open(out)
        if cache_key(found.key) != cache_key(key):
            raise InputError(f"The folder {out} holds statistics of another model, text or setting; choose another folder.")
        return found
    if out.exists() and not (out.is_dir() and {file.name for file in out.iterdir()} <= OURS):
        raise InputError(f"{out} exists and does not hold statistics of ours; choose another output folder.")
    if windows.shape[1] < 2:
        raise InputError("Calibration windows must hold at least two tokens.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        measured, held = split(len(windows))
        total = len(measured) + len(held)
        if not (out / MOMENTS).exists():
            _moments(model, architecture, windows, measured, key, out, estimator, lambda done: progress(done, total))
        _gradients(model, architecture, windows, held, out, lambda done: progress(len(measured) + done, total))
        _save({"ids": windows[held].contiguous()}, out / HELD_OUT, {})
        tokens = len(measured) * windows.shape[1]
        atomic_write(out / MANIFEST, manifest_bytes(key, tokens))
        (out / PARTIAL).unlink(missing_ok=True)
    return Statistics.open(out)


def _moments(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    chosen: list[int],
    key: dict[str, Any],
    out: Path,
    estimator: Estimator,
    progress: Callable[[int], None],
) -> None:
    moments = Moments(sites_of(architecture))
    done = _resume(moments, out / PARTIAL, cache_key(key))
    for position in range(done, len(chosen)):
        progress(position)
        generator = torch.Generator().manual_seed(int(key["seed"]) * 1_000_003 + chosen[position])
        add_window(model, architecture, moments, windows[chosen[position]], estimator, generator)
        if (position + 1) % SAVE_EVERY == 0 and position + 1 < len(chosen):
            _save(_state(moments, position + 1), out / PARTIAL, {"key": cache_key(key)})
    tokens = float(moments.tokens)
    arrays = {f"in.{name}": torch.from_numpy(packed(acc, acc.total)) for name, acc in moments.inputs.items()}
    arrays |= {f"out.{name}": torch.from_numpy(packed(acc, tokens)) for name, acc in moments.outputs.items()}
    arrays |= {"head.variance": moments.head_variance / tokens, "token.frequency": moments.frequency / tokens}
    _save(arrays, out / MOMENTS, {})


def _gradients(
    model: Any, architecture: Architecture, windows: torch.Tensor, chosen: list[int], out: Path, progress: Callable[[int], None]
) -> None:
    if (out / GRADIENTS).exists():
        return
    sites = sites_of(architecture)
    gradients = {site.name: torch.zeros(site.shape) for site in inner_sites(sites)}
    for position, index in enumerate(chosen):
        progress(position)
        add_gradients(model, architecture, sites, gradients, windows[index])
    tokens = len(chosen) * (windows.shape[1] - 1)
    _save({name: (value / tokens).to(torch.bfloat16) for name, value in gradients.items()}, out / GRADIENTS, {})
    progress(len(chosen))


def _state(moments: Moments, done: int) -> dict[str, torch.Tensor]:
    state = {"done": torch.tensor(done), "tokens": torch.tensor(moments.tokens)}
    state |= {"head.variance": moments.head_variance, "token.frequency": moments.frequency}
    for prefix, group in (("in.", moments.inputs), ("out.", moments.outputs)):
        for name, accumulator in group.items():
            state[prefix + name] = accumulator.buffer
            state["total." + prefix + name] = torch.tensor(accumulator.total, dtype=torch.float64)
    return state


def _resume(moments: Moments, path: Path, digest: str) -> int:
    """Windows already accumulated in an interrupted run of the same key; zero if there is none."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as handle:
            same = (handle.metadata() or {}).get("key") == digest
        state = load_file(path) if same else {}
    except (OSError, SafetensorError):
        state = {}
    if not state:
        path.unlink(missing_ok=True)
        return 0
    moments.tokens = int(state["tokens"])
    moments.head_variance, moments.frequency = state["head.variance"], state["token.frequency"]
    for prefix, group in (("in.", moments.inputs), ("out.", moments.outputs)):
        for name, accumulator in group.items():
            accumulator.restore(state[prefix + name], float(state["total." + prefix + name]))
    return int(state["done"])


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """safetensors through a temporary sibling; an interrupted save leaves the previous state standing."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(tensors, temporary, metadata=metadata)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    os.replace(temporary, path)

