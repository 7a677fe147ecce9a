"""Perplexity with one matrix truncated and all others whole: what `strs` searches through."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from edge_svd.allocate.strs import RATIOS
from edge_svd.architectures import Architecture, Site
from edge_svd.calibrate.collect import logits_of
from edge_svd.compare.storage import PLAIN, rank_within
from edge_svd.errors import Failure
from edge_svd.files import atomic_write, canonical_json
from edge_svd.planner.held_out import replaced

TOKENS = 2048
"""Of held-out calibration text, as ASVD's search uses them at most."""

ROWS = 128


class FromLayer:
    """A decoder that starts over from a layer: what comes before it is remembered and not computed again."""

    def __init__(self, model: Any, architecture: Architecture, ids: torch.Tensor) -> None:
        """ids: [count, window]."""
        self.model, self.architecture, self.ids = model, architecture, ids.to(model.device)
        self.body = model.get_submodule(architecture.layout.body)
        self.layers = model.get_submodule(architecture.layout.layers)
        self.entering: list[torch.Tensor] = []
        self.tuples = False
        handles = [layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in self.layers]
        handles.append(self.layers[0].register_forward_hook(self._form))
        try:
            self._run()
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, _: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.entering.append((arguments[0] if arguments else named["hidden_states"]).detach())

    def _form(self, _: Any, __: Any, output: Any) -> None:
        self.tuples = isinstance(output, tuple)  # some families hand on more than the hidden states

    def _run(self) -> torch.Tensor:
        with torch.inference_mode():
            return self.body(input_ids=self.ids, use_cache=False).last_hidden_state.float()

    def perplexity(self, layer: int) -> float:
        """Of the weights as they are now, where only those of `layer` and later ones have changed."""
        with self._skipping(layer):
            hidden = self._run()
        total = 0.0
        with torch.inference_mode():
            for states, ids in zip(hidden, self.ids, strict=True):
                for at in torch.arange(len(ids) - 1).split(ROWS):
                    q = torch.log_softmax(logits_of(self.model, states[at], self.architecture)[0], dim=-1)
                    total -= float(q.gather(1, ids[at + 1, None]).sum(dtype=torch.float64))
        nll = total / self.ids[:, 1:].numel()
        if not math.isfinite(nll):
            raise Failure("The compressed model gives NaN or Inf on the calibration text.")
        return math.exp(min(nll, 700.0))

    @contextmanager
    def _skipping(self, layer: int) -> Iterator[None]:
        """Layers before `layer` hand their input on, and that one is given what it was given before."""

        def instead(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if arguments:
                return (self.entering[layer], *arguments[1:]), named
            return arguments, named | {"hidden_states": self.entering[layer]}

        skipped = list(self.layers[:layer])
        handle = self.layers[layer].register_forward_pre_hook(instead, with_kwargs=True)
        for module in skipped:
            module.forward = lambda hidden_states, *_, **__: (hidden_states,) if self.tuples else hidden_states
        try:
            yield
        finally:
            handle.remove()
            for module in skipped:
                del module.forward  # the class's own shows again


class Sensitivities:
    """Perplexity with matrix g at a kept ratio, measured when it is first asked for and kept in `file`."""

    def __init__(
        self,
        sites: list[Site],
        truncated: Callable[[Site, int], torch.Tensor],
        decoder: Callable[[], FromLayer],
        file: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        storage: str = PLAIN,
    ) -> None:
        """truncated: the matrix of a site [m, n] fp32 at a rank."""
        self.storage = storage
        self.sites, self.truncated, self.file, self.progress = sites, truncated, file, progress
        self._decoder = decoder
        self._made: FromLayer | None = None
        self.known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, g: int, ratio: float) -> float:
        site, share = self.sites[g], f"{ratio:g}"
        row = self.known.setdefault(site.name, {})
        if share not in row:
            if self._made is None:
                self._made = self._decoder()
            m, n = site.shape
            weight = self.truncated(site, rank_within(site.shape, ratio * m * n, self.storage))
            with replaced(self._made.model, {site.name: weight}):
                row[share] = self._made.perplexity(site.layer)
            atomic_write(self.file, canonical_json(self.known))
            self.progress(sum(map(len, self.known.values())), len(self.sites) * len(RATIOS))
        return row[share]
