"""What every technique alone would reach at the same targets: predicted, from the same price list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge_svd.calibrate.statistics import Statistics
from edge_svd.errors import BudgetError
from edge_svd.front.targets import PLANNERS, Target
from edge_svd.models import OpenedModel
from edge_svd.planner.survey import Survey, survey
from edge_svd.steps import Planning


@dataclass(frozen=True)
class CurvePoint:
    """The best plan of one technique: bytes of its bundle, peak bytes of the process that
    runs it, and predicted KL, nats per token; all None, and `smallest`
    the least that the technique reaches, where it cannot meet the target."""

    target: Target
    file_bytes: int | None
    peak_rss_bytes: int | None
    kl: float | None
    smallest: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "target": {"kind": self.target.kind, "value": self.target.value},
            "file_bytes": self.file_bytes,
            "peak_rss_bytes": self.peak_rss_bytes,
            "kl": self.kl,
            "smallest": self.smallest,
        }


def restricted(opened: OpenedModel, statistics: Statistics, planning: Planning, family: str) -> Survey:
    """The price list as `--candidates FAMILY` limits it; read from the cache that the whole list was kept in."""
    return survey(
        opened.model,
        opened.architecture,
        statistics,
        method=planning.method,
        allocation_name=planning.allocation,
        kinds=(family,),
        cache=statistics.path,
    )


def curve(
    opened: OpenedModel,
    statistics: Statistics,
    planning: Planning,
    family: str,
    targets: Sequence[Target],
    solved: Callable[[], None] = lambda: None,
) -> tuple[CurvePoint, ...]:
    """One technique at every target, and at the least that it reaches where that lies between two of them.

    `solved` is called once a target.
    """
    prices = restricted(opened, statistics, planning, family)
    alone = replace(planning, candidates=family)
    points: dict[Target, CurvePoint] = {}
    smallest = 0
    for target in targets:
        points[target] = _point(opened, statistics, prices, alone, target)
        smallest = points[target].smallest or smallest
        solved()
    ends = Target(targets[0].kind, smallest)
    if targets[0] < ends < targets[-1] and ends not in points:
        points[ends] = _point(opened, statistics, prices, alone, ends)
    return tuple(points[target] for target in sorted(points))


def _point(
    opened: OpenedModel, statistics: Statistics, prices: Survey, planning: Planning, target: Target
) -> CurvePoint:
    try:
        plan = PLANNERS[target.kind](opened, statistics, prices, planning, target.value)
    except BudgetError as error:
        return CurvePoint(target, None, None, None, error.smallest)
    return CurvePoint(target, plan.file_bytes, plan.peak_rss_bytes, plan.kl)
