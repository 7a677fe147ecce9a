"""Cells at a ratio, or at the lowest one that meets a target: factors in fp32, healed where that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from edge_svd.allocate import allocation
from edge_svd.calibrate.statistics import Statistics
from edge_svd.compare.asked import Cell
from edge_svd.compare.component_changes import component_changes
from edge_svd.compare.healer import Healer
from edge_svd.compare.least import least_share
from edge_svd.compare.made import Made
from edge_svd.compare.matrices import Choice, Decomposed
from edge_svd.compare.rows import Row, Rows
from edge_svd.compare.sensitivity import TOKENS, FromLayer, Sensitivities
from edge_svd.compare.storage import PLAIN
from edge_svd.compute_device import computing
from edge_svd.errors import InputError
from edge_svd.factored import factored
from edge_svd.heal import NONE
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.progress import Tick, step


@dataclass(frozen=True)
class AtRatios:
    """A `made.Maker`: every matrix is decomposed once a method, and cut by every allocation at every ratio."""

    opened: OpenedModel
    statistics: Statistics
    rows: Rows
    healer: Healer

    def made(self, method: str, cells: Sequence[Cell]) -> Generator[Made, None, None]:
        """InputError on statistics without what the method needs, or a ratio that an allocation cannot meet."""
        with computing(self.opened.model):
            yield from self._made(method, cells)

    def _made(self, method: str, cells: Sequence[Cell]) -> Generator[Made, None, None]:
        start = time.monotonic()
        with step(f"Decomposing by {method}") as tick:
            found = Decomposed(self.opened, self.statistics, method, tick)
        decomposed = time.monotonic() - start
        for name in dict.fromkeys(cell.allocation for cell in cells):
            start = time.monotonic()
            own = [cell for cell in cells if cell.allocation == name]
            with step(f"Allocating by {name}") as tick:
                wanted, windows, changes = allocation(name).measures, self.statistics.held_out(), None
                if wanted == "changes":
                    changes = component_changes(self.opened, found.factorizations, windows, tick)
                priced = found.priced(name, changes)
                meter = None
                if wanted == "type":
                    meter = HeldOutKl(self.opened.model, windows, self.opened.architecture)
                chosen = {}
                for storage in dict.fromkeys(cell.storage for cell in own):
                    measured = self._sensitivities(found, storage, tick) if wanted == "single" else None
                    choose = cache(
                        partial(found.choose, name, priced=priced, measured=measured, meter=meter, storage=storage)
                    )
                    for amount in dict.fromkeys((cell.ratio, cell.target) for cell in own if cell.storage == storage):
                        chosen[storage, amount] = self._chosen(found, choose, *amount)
            seconds = decomposed + (time.monotonic() - start) / len(chosen)
            for cell in own:
                kept = chosen[cell.storage, (cell.ratio, cell.target)]
                record: Row = {"parameters": kept.parameters, "budget": kept.budget, "ranks": kept.ranks}
                record["seconds"] = round(seconds, 1)
                added = {site: factors.added for site, factors in found.factorizations.items() if factors.added > 0}
                record["added"] = added
                factors = found.factors(kept)
                if cell.heal != NONE:
                    factors, record["healing"] = self.healer(cell.heal, factors, cell.title)
                factors = found.stored(factors, cell.storage)
                yield Made(cell, record, partial(factored, self.opened.model, factors))

    def _decoder(self) -> FromLayer:
        ids = self.statistics.held_out()
        return FromLayer(self.opened.model, self.opened.architecture, ids[: max(1, TOKENS // ids.shape[1])])

    def _chosen(
        self, found: Decomposed, choose: Callable[[float], Choice], ratio: float | None, target: float | None
    ) -> Choice:
        """What is kept at a ratio, or the least whose perplexity on held-out calibration text is at most `target` times
        the dense one."""
        if ratio is not None:
            return choose(ratio)
        assert target is not None
        decoder = self._decoder()
        allowed = target * decoder.perplexity(0)

        def meets(ratio: float) -> bool:
            try:
                kept = choose(ratio)
            except InputError:  # the allocation cannot keep as little
                return False
            with factored(self.opened.model, found.factors(kept)):
                return decoder.perplexity(0) <= allowed

        return choose(least_share(meets))

    def _sensitivities(self, found: Decomposed, storage: str, tick: Tick) -> Sensitivities:
        self.rows.folder.mkdir(parents=True, exist_ok=True)
        return Sensitivities(
            found.sites,
            lambda site, rank: found.factorizations[site.name].truncated(rank).float(),
            self._decoder,
            self.rows.file(["sensitivities", found.method, *([] if storage == PLAIN else [storage])]),
            tick,
            storage,
        )
