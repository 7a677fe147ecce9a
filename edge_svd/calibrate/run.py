"""The streamed, resumable pass over the calibration windows: moments on most of them, gradients on the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from edge_svd.architectures import Architecture, sites_of
from edge_svd.calibrate import walked
from edge_svd.calibrate.collect import Estimator, Moments, add_window, mean
from edge_svd.calibrate.extras import count_windows, missing, take
from edge_svd.calibrate.shards import read_tensor, save_shards
from edge_svd.calibrate.statistics import (
    ACTIVATIONS,
    EXTRAS,
    FISHER,
    GRADIENTS,
    HELD_OUT,
    MANIFEST,
    MOMENTS,
    Statistics,
    cache_key,
    manifest_bytes,
)
from edge_svd.compute_device import computing
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json, writing
from edge_svd.kernels.symmetric import SymmetricAccumulator
from edge_svd.runtime.memory import release_free_memory
from edge_svd.streaming.on_demand import is_streamed

HELD_EVERY = 8
"""One window in this many is kept from the moments and used for first-order scores instead."""

SAVE_EVERY = 48
PARTIAL = "partial"
PARTIAL_MANIFEST = "partial.json"
CLAIM = "unfinished.txt"
"""Holds the key's digest until the folder is finished: partial work belongs to it."""
VECTORS = ("head.variance", "token.frequency")
OURS = {MANIFEST, MOMENTS, *EXTRAS, HELD_OUT, PARTIAL, PARTIAL_MANIFEST, CLAIM}
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
    kind: dict[str, Any] = {"kind": estimator.kind, "weighted": estimator.weighted, "precision": estimator.precision}
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
    *,
    extras: Collection[str] = EXTRAS,
) -> Statistics:
    """Run the model over windows [count, window] and write the statistics folder `out`; continue it if half done.

    Of `extras` only those named are taken; asking for others later adds them. Returns at once where
    `out` already holds statistics of the same key. Every window draws from its own seeded
    generator, so an interrupted run continues to the same numbers.

    Raises:
        Failure: NaN or Inf in activations, gradients or logits, naming the site; disk full.
        InputError: `out` holds statistics of another key; an unknown extra.
    """
    asked, parts = missing(out, extras), split(len(windows))
    measured, held = parts
    finished = Statistics.open(out) if (out / MANIFEST).exists() else None
    if finished is not None and cache_key(finished.key) != cache_key(key):
        raise InputError(f"The folder {out} holds statistics of another model, text or setting; choose another folder.")
    if finished is None and out.exists() and not (out.is_dir() and all(_is_ours(file.name) for file in out.iterdir())):
        raise InputError(f"{out} exists and does not hold statistics of ours; choose another output folder.")
    if windows.shape[1] < 2:
        raise InputError("Calibration windows must hold at least two tokens.")
    before = len(measured) if finished is None else 0
    total = before + count_windows(asked, len(measured), len(held))
    with writing(out), computing(model) as device:
        held_out, windows = windows[held], windows.to(device)
        if finished is None:
            out.mkdir(parents=True, exist_ok=True)
            _claim(out, cache_key(key))
            asked = missing(out, extras)
            if not (out / MOMENTS).exists():
                take_moments = _walked_moments if is_streamed(model) else _moments
                take_moments(
                    model, architecture, windows, measured, key, out, estimator, lambda done: progress(done, total)
                )
            release_free_memory()
        if asked:
            take_extras = _walked_extras if is_streamed(model) else take
            tick: Callable[[int], None] = lambda done: progress(before + done, total)  # noqa: E731
            take_extras(model, architecture, windows, parts, out, estimator.precision, asked, tick)
        if finished is None:
            progress(total, total)
            save_shards(out / HELD_OUT, ["ids"], lambda _: held_out)
            atomic_write(out / MANIFEST, manifest_bytes(key, len(measured) * windows.shape[1]))
            (out / PARTIAL_MANIFEST).unlink(missing_ok=True)
            (out / CLAIM).unlink(missing_ok=True)
            shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return Statistics.open(out)


def _claim(out: Path, digest: str) -> None:
    """Drop what an interrupted run with another key left in a folder that the user named."""
    if (out / CLAIM).exists() and (out / CLAIM).read_text() == digest:
        return
    for name in (MOMENTS, *EXTRAS, HELD_OUT, PARTIAL):
        shutil.rmtree(out / name, ignore_errors=True)
    (out / PARTIAL_MANIFEST).unlink(missing_ok=True)
    atomic_write(out / CLAIM, digest)


def _is_ours(name: str) -> bool:
    """A file of an unfinished statistics folder, or what a killed process left while it wrote one."""
    return name in OURS or (name.startswith(".") and name.endswith((".tmp", ".new", ".old")))


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
    moments = Moments(sites_of(architecture), device=windows.device)
    done = _resume(moments, out, cache_key(key))
    for position in range(done, len(chosen)):
        progress(position)
        generator = torch.Generator().manual_seed(_seed(key, chosen[position]))
        add_window(model, architecture, moments, windows[chosen[position]], estimator, generator)
        if (position + 1) % SAVE_EVERY == 0 and position + 1 < len(chosen):
            _save_partial(moments, position + 1, cache_key(key), out)
    tokens = float(moments.tokens)
    save_shards(out / MOMENTS, _finished_names(moments), lambda name: _finished(moments, name, tokens))


def _seed(key: dict[str, Any], window: int) -> int:
    """Of the draws in a window."""
    return int(key["seed"]) * 1_000_003 + window


def _walked_moments(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    chosen: list[int],
    key: dict[str, Any],
    out: Path,
    estimator: Estimator,
    progress: Callable[[int], None],
) -> None:
    """`_moments` of a model that does not fit into memory."""
    seeds = [_seed(key, number) for number in chosen]
    counted = lambda done, total: progress(done * len(chosen) // total)  # noqa: E731
    walked.moments(model, architecture, windows[chosen], seeds, estimator, out / PARTIAL, out / MOMENTS, counted)


def _walked_extras(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    parts: tuple[list[int], list[int]],
    out: Path,
    precision: str,
    asked: Collection[str],
    progress: Callable[[int], None],
) -> None:
    """`take` from a model that does not fit into memory."""
    measured, held = parts
    before = len(measured) * (ACTIVATIONS in asked)
    if ACTIVATIONS in asked:
        counted = lambda done, total: progress(done * len(measured) // total)  # noqa: E731
        walked.activations(model, architecture, windows[measured], precision, out / PARTIAL, out, counted)
    if slopes := [extra for extra in (GRADIENTS, FISHER) if extra in asked]:
        counted = lambda done, total: progress(before + done * len(held) // total)  # noqa: E731
        walked.slopes(model, architecture, windows[held], precision, slopes, out / PARTIAL, out, counted)


def _finished_names(moments: Moments) -> list[str]:
    return [*(f"in.{name}" for name in moments.inputs), *(f"out.{name}" for name in moments.outputs), *VECTORS]


def _finished(moments: Moments, name: str, tokens: float) -> torch.Tensor:
    """The mean that is stored under `name`; its accumulator is given up, so that no second copy of all exists."""
    if name == "head.variance":
        return moments.head_variance / tokens
    if name == "token.frequency":
        return moments.frequency / tokens
    side, _, rest = name.partition(".")
    accumulator = (moments.inputs if side == "in" else moments.outputs).pop(rest)
    divisor = accumulator.total if side == "in" else tokens
    return mean(accumulator.buffer, divisor)


def _accumulators(moments: Moments) -> dict[str, SymmetricAccumulator]:
    return {f"in.{name}": acc for name, acc in moments.inputs.items()} | {
        f"out.{name}": acc for name, acc in moments.outputs.items()
    }


def _save_partial(moments: Moments, done: int, digest: str, out: Path) -> None:
    """State after `done` windows, and a small file that says so once all of it is on disk."""
    (out / PARTIAL_MANIFEST).unlink(missing_ok=True)
    accumulators = _accumulators(moments)
    vectors = {"head.variance": moments.head_variance, "token.frequency": moments.frequency}
    save_shards(
        out / PARTIAL,
        [*accumulators, *vectors],
        lambda name: vectors[name] if name in vectors else accumulators[name].buffer,
    )
    totals = {name: accumulator.total.hex() for name, accumulator in accumulators.items()}
    state = {"key": digest, "done": done, "tokens": moments.tokens, "totals": totals}
    atomic_write(out / PARTIAL_MANIFEST, canonical_json(state))


def _resume(moments: Moments, out: Path, digest: str) -> int:
    """Windows already accumulated in an interrupted run of the same key; zero if there is none."""
    if not (out / PARTIAL_MANIFEST).exists():
        return 0
    state = read_json(out / PARTIAL_MANIFEST, "state of an interrupted calibration")
    if not isinstance(state, dict) or state.get("key") != digest:
        return 0
    moments.tokens = int(state["tokens"])
    moments.head_variance.copy_(read_tensor(out / PARTIAL, "head.variance"))
    moments.frequency.copy_(read_tensor(out / PARTIAL, "token.frequency"))
    for name, accumulator in _accumulators(moments).items():
        accumulator.restore(read_tensor(out / PARTIAL, name), float.fromhex(state["totals"][name]))
    return int(state["done"])
