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
from edge_svd.steps import Planning, run_plan

MOST = 64


@dataclass(frozen=True, order=True)
class Target:
    """One target: `value` bytes of what `kind` names ("size": everything in the bundle's folder)."""

    kind: str
    value: int

    @property
    def label(self) -> str:
        """The target as a person writes it, exact: 115MB, 64MiB, 190001B."""
        for unit, scale in (("MB", 10**6), ("MiB", 2**20), ("kB", 10**3), ("KiB", 2**10)):
            if self.value % scale == 0:
                return f"{self.value // scale}{unit}"
        return f"{self.value}B"


Planner = Callable[[OpenedModel, Statistics, Survey, Planning, int], Plan]

PLANNERS: dict[str, Planner] = {"size": run_plan}
"""Kind of target → what makes the best plan for a value of it; BudgetError where there is none."""


def size_targets(text: str) -> tuple[Target, ...]:
    """Targets from `a,b,c`, each a size as `--size` takes it; sorted, repeated ones once.

    Raises InputError on an empty list, on a part that is not a size, and on more than 64 of them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(parts):
        raise InputError("--sizes is empty; write it like 145MB,115MB,90MB.")
    targets = tuple(sorted({Target("size", parse_size(part)) for part in parts}))
    if len(targets) > MOST:
        raise InputError(f"--sizes names {len(targets)} sizes; at most {MOST} fit into one front.")
    return targets
