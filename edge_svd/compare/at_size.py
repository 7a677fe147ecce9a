"""Cells at a size: whole folders planned to equal bytes, every matrix rounded as it ships."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from edge_svd.architectures import Site
from edge_svd.calibrate.collect import inner_sites
from edge_svd.calibrate.statistics import Statistics
from edge_svd.checkpoint import Checkpoint
from edge_svd.compare import storage
from edge_svd.compare.asked import Cell
from edge_svd.compare.made import Made
from edge_svd.compare.rows import Row, Rows
from edge_svd.compress import compressed
from edge_svd.formats import PIVOTED, SiteFormat
from edge_svd.models import OpenedModel
from edge_svd.planner.plan import Plan
from edge_svd.progress import step
from edge_svd.shipped import as_shipped
from edge_svd.steps import Planning, run_plan, run_survey


@dataclass(frozen=True)
class AtSizes:
    """A `made.Maker`: one price list serves all sizes, and all allocations that price alike."""

    opened: OpenedModel
    statistics: Statistics
    rows: Rows

    def made(self, method: str, cells: Sequence[Cell]) -> Generator[Made, None, None]:
        """BudgetError on a size that no plan meets, before any of an allocation's plans is carried out; errors as
        `steps.run_survey`, `steps.run_plan` and `compress`."""
        for name in dict.fromkeys(cell.allocation for cell in cells):
            own = [cell for cell in cells if cell.allocation == name]
            start = time.monotonic()
            candidates, seed = ",".join(own[0].candidates), int(self.statistics.key["seed"])
            planning = Planning(method, name, candidates, seed=seed)
            prices = run_survey(self.opened, self.statistics, planning)
            plans: dict[Cell, Plan] = {}
            with step(f"Planning by {method}, {name}") as tick:
                for cell in own:
                    assert cell.size is not None
                    plans[cell] = run_plan(self.opened, self.statistics, prices, planning, cell.size)
                    tick(len(plans), len(own))
            planned = (time.monotonic() - start) / len(own)
            last: Checkpoint | None = None
            try:
                for cell, plan in plans.items():
                    start = time.monotonic()
                    checkpoint = self._rounded(cell, plan, last)
                    seconds = planned + time.monotonic() - start
                    yield Made(
                        cell,
                        _record(self.opened, plan) | {"budget": cell.size, "seconds": round(seconds, 1)},
                        partial(as_shipped, self.opened, checkpoint, plan, list(plan.sites)),
                    )
                    _forget(last)
                    last = checkpoint
            finally:
                _forget(last)

    def _rounded(self, cell: Cell, plan: Plan, last: Checkpoint | None) -> Checkpoint:
        """The plan's checkpoint; what another size of the same method and allocation has in the same format is its
        own. It stays on disk until the cell is measured, so that an interrupted run continues."""
        out = self.rows.file(["checkpoint", cell.names]).with_suffix("")
        self.rows.folder.mkdir(parents=True, exist_ok=True)
        with step(f"Rounding {cell.title}") as tick:
            return compressed(self.opened, plan, self.statistics, out, progress=tick, finished=last)


def _forget(checkpoint: Checkpoint | None) -> None:
    if checkpoint is not None:
        shutil.rmtree(checkpoint.path, ignore_errors=True)


def _record(opened: OpenedModel, plan: Plan) -> Row:
    """Parameters and ranks of the matrices between embedding and head, bytes of everything in the folder."""
    inner = [(site, plan.formats[site.name]) for site in inner_sites(opened.sites)]
    return {
        "parameters": sum(_parameters(site, fmt) for site, fmt in inner),
        "bytes": plan.file_bytes,
        "ranks": {site.name: fmt.rank if fmt.factored else None for site, fmt in inner},
    }


def _parameters(site: Site, fmt: SiteFormat) -> int:
    m, n = site.shape
    stored = storage.PIVOTED if fmt.kind in PIVOTED else storage.PLAIN
    # A dense format has no rank; the factors of a corrected one come on top of it.
    return storage.parameters(site.shape, fmt.rank, stored) + (0 if fmt.factored else m * n)
