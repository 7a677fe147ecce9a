"""Many windows through a model and back, one layer at a time: peak memory does not depend on the number of layers.

Forward, every layer's input is written to disk, window by window. At the top, cotangents of the head's input become
those of the last layer's output. Back, every layer is computed once more from its kept input, with a graph, and the
cotangents of its output become those of its input. In memory are one layer's weights, one window's activations and
graph of that layer, and what is collected there. Every step ends with a rename, so a walk that was killed goes on
behind the last finished layer, to the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

import torch

from edge_svd.architectures import Architecture, Site, sites_of
from edge_svd.calibrate.collect import checking_inputs, inner_sites, leaf_at, running_in, slim_graph, watching
from edge_svd.streaming.apart import Apart
from edge_svd.streaming.on_demand import resident
from edge_svd.streaming.spill import Spill

Tick = Callable[[int], None]


class AtLayer(Protocol):
    """What is collected at the matrices of one layer, window by window and in each pass by pass."""

    def begin(self, index: int) -> None:
        """Backward pass number `index` of a window begins; a window's first is number 0."""
        ...

    def seen(self, site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        """x [tokens, n] and g [tokens, m] of a matrix."""
        ...

    def finish(self) -> None:
        """All windows were seen; write it."""
        ...


class Seeing:
    """Shows what is seen at some matrices, by name, and keeps nothing."""

    def __init__(self, names: Collection[str], seen: Callable[[Site, torch.Tensor, torch.Tensor], None]) -> None:
        self.names, self.show = names, seen

    def begin(self, index: int) -> None:
        pass

    def seen(self, site: Site, x: torch.Tensor, g: torch.Tensor) -> None:
        if site.name in self.names:
            self.show(site, x, g)

    def finish(self) -> None:
        pass


class Walk:
    """windows: int64 [count, tokens]; `folder` keeps hidden states until the walk is over; `passes` backward passes."""

    def __init__(
        self,
        model: Any,
        architecture: Architecture,
        windows: torch.Tensor,
        folder: Path,
        precision: str = "float32",
        passes: int = 1,
    ) -> None:
        self.model, self.architecture, self.windows = model, architecture, windows
        self.folder, self.precision, self.passes = folder, precision, passes
        folder.mkdir(parents=True, exist_ok=True)
        self.apart = Apart(model, architecture, windows[0])
        self.depth = len(self.apart.layers)
        self.sites = inner_sites(sites_of(architecture))
        self.shape = (1, windows.shape[1], architecture.hidden_size)

    def states(self, place: int) -> Spill:
        """The input of layer number `place`; at `depth`, what the last layer made."""
        return Spill(self.folder / f"states-{place:04d}.f32", len(self.windows), self.shape)

    def cotangents(self, place: int) -> Spill:
        """Of `states(place)`, of every pass."""
        return Spill(self.folder / f"cotangents-{place:04d}.f32", len(self.windows), (self.passes, *self.shape))

    @property
    def steps(self) -> int:
        """Windows times stages, for progress."""
        return len(self.windows) * (2 * self.depth + 3)

    def of_layer(self, number: int) -> list[Site]:
        """The matrices of a layer."""
        return [site for site in self.sites if site.layer == number]

    def enter(self, progress: Tick) -> None:
        """Every window up to the first layer."""
        spill = self.states(0)
        if spill.finished:
            return
        with torch.no_grad(), running_in(self.precision):
            for number, ids in enumerate(self.windows):
                progress(number)
                spill.write(number, self.apart.entering(ids).float())
        spill.finish()

    def up(self, layer: int, progress: Tick, seen: Callable[[], None] = lambda: None) -> None:
        """Every window through one layer; nothing where that is done. `seen` is called before it counts as done."""
        spill, before = self.states(layer + 1), self.states(layer)
        if spill.finished:
            return
        own = self.of_layer(layer)
        with resident(self.apart.layers[layer]), torch.no_grad(), checking_inputs(self.model, own):
            for number in range(len(self.windows)):
                progress(number)
                with running_in(self.precision):
                    spill.write(number, self.apart.layer(layer, before.read(number)).float())
        seen()
        spill.finish()

    def turn(self, pull: Callable[[int, torch.Tensor], torch.Tensor], progress: Tick) -> None:
        """pull: number of a window and its last hidden states [tokens, hidden] → cotangents of these in every pass,
        [passes, tokens, hidden]."""
        spill, top = self.cotangents(self.depth), self.states(self.depth)
        with resident(self.model.lm_head):
            for number, ids in enumerate(self.windows):
                progress(number)
                states = top.read(number).requires_grad_(True)
                with torch.enable_grad(), running_in(self.precision):
                    hidden = self.apart.leaving(ids, states)
                pulls = pull(number, hidden.detach().float()[0])
                spill.write(number, self._back(hidden, states, pulls[:, None]))

    def down(self, layer: int, collected: AtLayer, progress: Tick) -> None:
        """The cotangents of every window through one layer."""
        spill, above, inputs = self.cotangents(layer), self.cotangents(layer + 1), self.states(layer)
        with resident(self.apart.layers[layer]), watching(self.model, self.of_layer(layer), collected.seen):
            for number in range(len(self.windows)):
                progress(number)
                states = inputs.read(number).requires_grad_(True)
                with torch.enable_grad(), running_in(self.precision), slim_graph():
                    made = self.apart.layer(layer, states)
                spill.write(number, self._back(made, states, above.read(number), collected.begin))
        collected.finish()
        spill.finish()

    def _back(
        self,
        made: torch.Tensor,
        given: torch.Tensor,
        pulls: torch.Tensor,
        begin: Callable[[int], None] = lambda index: None,
    ) -> torch.Tensor:
        """The cotangents of `given` in every pass, from those of what was made of it."""
        found = []
        for index, pull in enumerate(pulls):
            begin(index)
            more = index + 1 < len(pulls)
            found.append(torch.autograd.grad(made, given, pull.to(made.dtype), retain_graph=more)[0])
        return torch.stack(found)

    def leave(self, on_gradient: Callable[[torch.Tensor], None], progress: Tick) -> None:
        """on_gradient: cotangents [tokens, hidden] of the embedding's output, window by window."""
        above = self.cotangents(0)
        embedding = self.architecture.layout.embedding
        for number, ids in enumerate(self.windows):
            progress(number)
            with leaf_at(self.model, embedding, on_gradient), torch.enable_grad(), running_in(self.precision):
                states = self.apart.entering(ids)
            for index, pull in enumerate(above.read(number)):
                states.backward(pull.to(states.dtype), retain_graph=index + 1 < self.passes)

    def run(
        self,
        pull: Callable[[int, torch.Tensor], torch.Tensor],
        turned: Callable[[], None],
        at_layer: Callable[[int], AtLayer],
        on_gradient: Callable[[torch.Tensor], None] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """All of it, or what an interrupted run has left. `turned` is called when `pull` has seen every window."""
        count = len(self.windows)

        def ticking(stage: int) -> Tick:
            return lambda number: progress(stage * count + number, self.steps)

        places = [place for place in range(self.depth + 1) if self.cotangents(place).finished]
        if not places:
            self.enter(ticking(0))
            for layer in range(self.depth):
                self.up(layer, ticking(1 + layer))
            self.turn(pull, ticking(1 + self.depth))
            turned()
            self.cotangents(self.depth).finish()
        for layer in reversed(range(min(places, default=self.depth))):
            self.down(layer, at_layer(layer), ticking(1 + 2 * self.depth - layer))
            self.cotangents(layer + 1).drop()
            self.states(layer + 1).drop()
        if on_gradient is not None:
            self.leave(on_gradient, ticking(2 + 2 * self.depth))
