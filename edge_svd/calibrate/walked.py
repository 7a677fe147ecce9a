"""Statistics of a model that does not fit into memory, layer by layer (`streaming.walk`): what `run` and `extras` take
from one that does, under the same names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import Collector, Estimator, Moments, check_finite, mean, pulled, pulled_loss
from edge_svd.calibrate.extras import Readings, Slopes
from edge_svd.calibrate.shards import save_shard, shard_of
from edge_svd.calibrate.statistics import ACTIVATIONS
from edge_svd.errors import InputError
from edge_svd.files import drop_leftovers, format_size
from edge_svd.kernels.symmetric import SymmetricAccumulator
from edge_svd.streaming.walk import Walk

ENDS = "ends"
Progress = Callable[[int, int], None]


def require_disk(walk: Walk) -> None:
    """InputError where the hidden states would fill the disk."""
    needed = 4 * walk.windows.numel() * walk.architecture.hidden_size * (walk.depth + 1 + 2 * walk.passes)
    kept = sum(file.stat().st_size for file in walk.folder.iterdir())
    free = shutil.disk_usage(walk.folder).free
    if needed - kept > free:
        raise InputError(
            f"Calibrating layer by layer keeps {format_size(needed)} of hidden states in {walk.folder}, where "
            f"{format_size(free)} are free; make room, or take fewer or shorter calibration windows."
        )


def _publish(fresh: Path, out: Path) -> None:
    """A finished folder gets its name, without what killed runs have left in it."""
    drop_leftovers(fresh)
    os.rename(fresh, out)


class _MomentsAtLayer:
    def __init__(self, sites: Sequence[Site], estimator: Estimator, folder: Path, tokens: int) -> None:
        self.folder, self.tokens = folder, float(tokens)
        self.inputs = {site.input: SymmetricAccumulator(site.shape[1]) for site in sites}
        self.outputs = {site.name: SymmetricAccumulator(site.shape[0]) for site in sites}
        self.collector = Collector(sites, self.inputs, self.outputs, estimator)
        self.seen = self.collector.seen

    def begin(self, index: int) -> None:
        self.collector.index = index

    def finish(self) -> None:
        found = {f"in.{name}": mean(made.buffer, made.total) for name, made in self.inputs.items()}
        found |= {f"out.{name}": mean(made.buffer, self.tokens) for name, made in self.outputs.items()}
        save_shard(self.folder, found)


def moments(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    seeds: Sequence[int],
    estimator: Estimator,
    partial: Path,
    out: Path,
    progress: Progress,
) -> None:
    """The folder `out` of second moments of windows [count, tokens], each drawing from its own seed; `partial` holds
    what an interrupted run continues from. Failure on NaN or Inf, naming the site."""
    walk = Walk(model, architecture, windows, partial / "walk", estimator.precision, estimator.passes)
    require_disk(walk)
    sites, fresh = sites_of(architecture), partial / out.name
    fresh.mkdir(parents=True, exist_ok=True)
    ends = Moments(sites, inner=())

    def pull(number: int, states: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seeds[number])
        found = [
            pulled(model, architecture, states, estimator, i, generator, ends.add_variance if i == 0 else None)
            for i in range(walk.passes)
        ]
        ends.add_ends(states, windows[number])
        return torch.stack(found)

    def turned() -> None:
        head = ends.inputs[ends.head.input]
        vectors = {"head.variance": ends.head_variance, "token.frequency": ends.frequency}
        found = {name: vector / float(ends.tokens) for name, vector in vectors.items()}
        (partial / ENDS).mkdir(exist_ok=True)
        save_shard(partial / ENDS, {f"in.{ends.head.input}": mean(head.buffer, head.total), **found})

    embedding = ends.outputs[ends.embedding.name]
    tokens = windows.numel()
    walk.run(
        pull,
        turned,
        lambda layer: _MomentsAtLayer(walk.of_layer(layer), estimator, fresh, tokens),
        lambda g: embedding.add(g * estimator.scale),
        progress,
    )
    own = f"out.{ends.embedding.name}"
    known = load_file(partial / ENDS / shard_of(own))
    save_shard(fresh, known | {own: mean(embedding.buffer, float(tokens))})
    _publish(fresh, out)
    shutil.rmtree(walk.folder)


class _SlopesAtLayer:
    def __init__(self, sites: Sequence[Site], count: int, tokens: int, folders: Mapping[str, Path]) -> None:
        self.slopes, self.means, self.folders = Slopes(sites), (count, tokens), folders

    def begin(self, index: int) -> None:
        pass

    def seen(self, site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        check_finite(site, x, g)
        self.slopes.add(site, g.float().T @ x.float())

    def finish(self) -> None:
        for kind, folder in self.folders.items():
            save_shard(folder, {name: self.slopes.mean(kind, name, *self.means) for name in self.slopes.fisher})


def slopes(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    precision: str,
    asked: Sequence[str],
    partial: Path,
    out: Path,
    progress: Progress,
) -> None:
    """The folders of `asked` (GRADIENTS, FISHER) in `out`, of windows [count, tokens]; see `moments`."""
    walk = Walk(model, architecture, windows, partial / "walk-slopes", precision)
    require_disk(walk)
    folders = {name: partial / name for name in asked}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    tokens = len(windows) * (windows.shape[1] - 1)
    walk.run(
        lambda number, states: pulled_loss(model, architecture, states, windows[number], precision)[None],
        lambda: None,
        lambda layer: _SlopesAtLayer(walk.of_layer(layer), len(windows), tokens, folders),
        progress=progress,
    )
    for name, folder in folders.items():
        _publish(folder, out / name)
    shutil.rmtree(walk.folder)


def activations(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    precision: str,
    partial: Path,
    out: Path,
    progress: Progress,
) -> None:
    """The folder ACTIVATIONS in `out`, of windows [count, tokens]; see `moments`."""
    walk = Walk(model, architecture, windows, partial / "walk-activations", precision)
    fresh = partial / ACTIVATIONS
    fresh.mkdir(parents=True, exist_ok=True)
    readers = {site.input: site for site in reversed(walk.sites)}
    total = len(windows) * (walk.depth + 1)
    walk.enter(lambda number: progress(number, total))
    done = [place for place in range(walk.depth + 1) if walk.states(place).finished]
    for layer in range(max(done), walk.depth):
        start = (1 + layer) * len(windows)
        _read_layer(walk, layer, readers, fresh, partial_tick(progress, start, total))
    _publish(fresh, out / ACTIVATIONS)
    shutil.rmtree(walk.folder)


def partial_tick(progress: Progress, start: int, total: int) -> Callable[[int], None]:
    """Progress within a stage that begins at `start`."""
    return lambda number: progress(start + number, total)


def _read_layer(
    walk: Walk, layer: int, readers: Mapping[str, Site], folder: Path, progress: Callable[[int], None]
) -> None:
    readings = Readings({name: site for name, site in readers.items() if site.layer == layer})

    def save() -> None:
        names = [(kind, key) for key in readings.readers for kind in ("in", "size")]
        save_shard(folder, {f"{kind}.{key}": readings.mean(kind, key) for kind, key in names})

    with readings.watching(walk.model):
        walk.up(layer, progress, save)
    walk.states(layer).drop()
