"""Statistics that only some methods and allocations look at, each taken when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import CPU, add_gradients, finite, inner_sites, running_in
from edge_svd.calibrate.shards import save_shards
from edge_svd.calibrate.statistics import ACTIVATIONS, EXTRAS, FISHER, GRADIENTS
from edge_svd.errors import Failure, InputError
from edge_svd.kernels.symmetric import SymmetricAccumulator

Tick = Callable[[int], None]


def missing(out: Path, wanted: Collection[str]) -> list[str]:
    """Those of `wanted` that a statistics folder does not hold yet; InputError on an unknown one."""
    for extra in wanted:
        if extra not in EXTRAS:
            raise InputError(f"Unknown kind of statistics {extra!r}; known: {', '.join(EXTRAS)}.")
    return [extra for extra in EXTRAS if extra in wanted and not (out / extra).exists()]


def count_windows(asked: Collection[str], measured: int, held: int) -> int:
    """How many windows taking these runs over."""
    return measured * (ACTIVATIONS in asked) + held * (GRADIENTS in asked or FISHER in asked)


def take(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    parts: tuple[Sequence[int], Sequence[int]],
    out: Path,
    precision: str,
    asked: Collection[str],
    progress: Tick,
) -> None:
    """Run the model over the windows [count, window] of moments and of gradients (`parts`) and write what is asked.

    Failure on NaN or Inf, naming the site; disk full.
    """
    measured, held = parts
    if ACTIVATIONS in asked:
        _activations(model, architecture, windows[list(measured)], out, precision, progress)
        progress(len(measured))
    slopes = [extra for extra in (GRADIENTS, FISHER) if extra in asked]
    if slopes:
        before = len(measured) * (ACTIVATIONS in asked)
        _slopes(model, architecture, windows[list(held)], out, precision, slopes, lambda done: progress(before + done))
        progress(before + len(held))


class Readings:
    """E[x xᵀ] and E|x| of inputs, all tokens alike; `readers`: input key → a matrix that reads it."""

    def __init__(self, readers: Mapping[str, Site], device: torch.device = CPU) -> None:
        self.readers = readers
        self.moments = {name: SymmetricAccumulator(site.shape[1], device=device) for name, site in readers.items()}
        self.sizes = {name: torch.zeros(site.shape[1], device=device) for name, site in readers.items()}
        self.tokens = {name: 0.0 for name in readers}

    def seen(self, site: Site, x: torch.Tensor) -> None:
        """x [tokens, n]; Failure where it is not finite."""
        if not finite(x):
            raise Failure(f"The activations at {site.name} hold NaN or Inf on the calibration text.")
        self.moments[site.input].add(x)
        self.sizes[site.input] += x.float().abs().sum(0)
        self.tokens[site.input] += len(x)

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Sees every input just before it is multiplied."""

        def watch(site: Site) -> Callable[..., None]:
            return lambda _, arguments: self.seen(site, arguments[0].flatten(0, -2))

        handles = [model.get_submodule(s.name).register_forward_pre_hook(watch(s)) for s in self.readers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def mean(self, kind: str, key: str) -> torch.Tensor:
        """`in`: the moment, its accumulator is given up; `size`: the magnitude."""
        total = self.moments.pop(key).buffer if kind == "in" else self.sizes[key]
        return total / self.tokens[key]


def _activations(
    model: Any, architecture: Architecture, windows: torch.Tensor, out: Path, precision: str, progress: Tick
) -> None:
    readings = Readings({s.input: s for s in reversed(inner_sites(sites_of(architecture)))}, windows.device)
    body = model.get_submodule(architecture.layout.body)
    with readings.watching(model), torch.inference_mode(), running_in(precision, windows.device):
        for done, ids in enumerate(windows):
            progress(done)
            body(input_ids=ids[None], use_cache=False)
    names = [f"{kind}.{key}" for key in readings.readers for kind in ("in", "size")]
    save_shards(out / ACTIVATIONS, names, lambda name: readings.mean(*name.split(".", 1)))


class Slopes:
    """∂L/∂W summed over windows, and the row sums of its squares, of matrices between embedding and head."""

    def __init__(self, sites: Sequence[Site], device: torch.device = CPU) -> None:
        self.gradients = {site.name: torch.zeros(site.shape, device=device) for site in sites}
        self.fisher = {site.name: torch.zeros(site.shape[0], dtype=torch.float64, device=device) for site in sites}

    def add(self, site: Site, slope: torch.Tensor) -> None:
        """A window's ∂L/∂W [m, n]."""
        self.gradients[site.name] += slope
        self.fisher[site.name] += slope.square().sum(1, dtype=torch.float64)

    def mean(self, kind: str, name: str, count: int, tokens: int) -> torch.Tensor:
        """GRADIENTS: bfloat16 a token, its sum is given up; FISHER: a window."""
        if kind == FISHER:
            return self.fisher[name] / count
        return (self.gradients.pop(name) / tokens).to(torch.bfloat16)


def _slopes(
    model: Any,
    architecture: Architecture,
    windows: torch.Tensor,
    out: Path,
    precision: str,
    asked: Collection[str],
    progress: Tick,
) -> None:
    sites = sites_of(architecture)
    slopes = Slopes(inner_sites(sites), windows.device)
    for done, ids in enumerate(windows):
        progress(done)
        add_gradients(model, architecture, sites, slopes.add, ids, precision)
    tokens = len(windows) * (windows.shape[1] - 1)
    for kind in (FISHER, GRADIENTS):
        if kind in asked:
            means = partial(slopes.mean, kind, count=len(windows), tokens=tokens)
            save_shards(out / kind, list(slopes.fisher), means)
