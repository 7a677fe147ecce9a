"""What a front is asked for: targets of one kind, smallest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edge_svd.calibrate.statistics import Statistics
from edge_svd.errors import InputError
from edge_svd.files import parse_size
from edge_svd.models import OpenedModel
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.planner.targets import Targets
from edge_svd.steps import Planning, run_plan

MOST = 64


@dataclass(frozen=True, order=True)
class Target:
    """One target: `value` bytes of what `kind` names ("size": everything in the bundle's folder; "ram": the peak of a
    process that runs it)."""

    kind: str
    value: int

    @property
    def label(self) -> str:
        """The target as a person writes it, exact: 115MB, 64MiB, 190001B, ram-300MB."""
        prefix = "" if self.kind == "size" else f"{self.kind}-"
        for unit, scale in (("MB", 10**6), ("MiB", 2**20), ("kB", 10**3), ("KiB", 2**10)):
            if self.value % scale == 0:
                return f"{prefix}{self.value // scale}{unit}"
        return f"{prefix}{self.value}B"


Planner = Callable[[OpenedModel, Statistics, Survey, Planning, int], Plan]


def _within_ram(opened: OpenedModel, statistics: Statistics, prices: Survey, planning: Planning, value: int) -> Plan:
    return run_plan(opened, statistics, prices, planning, Targets(peak_rss_bytes=value))


PLANNERS: dict[str, Planner] = {"size": run_plan, "ram": _within_ram}
"""Kind of target → what makes the best plan for a value of it; BudgetError where there is none."""


def targets_from(sizes: str | None, rams: str | None) -> tuple[Target, ...]:
    """Targets of the one kind that is given; InputError unless exactly one is."""
    if (sizes is None) == (rams is None):
        raise InputError("A front needs targets of one kind: give either --sizes or --rams.")
    return parse_targets("size", sizes) if sizes is not None else parse_targets("ram", rams or "")


def parse_targets(kind: str, text: str) -> tuple[Target, ...]:
    """Targets from `a,b,c`, each a size as `--size` takes it; sorted, repeated ones once.

    Raises InputError on an empty list, on a part that is not a size, and on more than 64 of them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise InputError(f"--{kind}s is empty; write it like 145MB,115MB,90MB.")
    targets = tuple(sorted({Target(kind, parse_size(part)) for part in parts}))
    if len(targets) > MOST:
        raise InputError(f"--{kind}s names {len(targets)} targets; at most {MOST} fit into one front.")
    return targets
