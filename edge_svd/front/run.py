"""`front`: every target planned from all candidates and from each technique alone, carried out and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.errors import BudgetError, InputError
from edge_svd.export.documents import context_length
from edge_svd.front.curves import CurvePoint, curve
from edge_svd.front.folder import FORMAT, refuse_foreign_front, refuse_other_front, write_front
from edge_svd.front.points import Evaluation, Point, Workshop
from edge_svd.front.targets import PLANNERS, Target
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.survey import Survey
from edge_svd.progress import console, step
from edge_svd.report.machine import describe, today
from edge_svd.steps import Calibration, Planning, run_calibration, run_survey


@dataclass(frozen=True)
class Front:
    """A finished or half-finished front; `to_json` is what `front --json` prints and front.json holds."""

    opened: OpenedModel
    inputs: dict[str, Any]
    calibration: Calibration
    points: tuple[Point, ...]
    curves: dict[str, tuple[CurvePoint, ...]]
    evaluation: dict[str, Any] | None
    dense: dict[str, Any] | None
    threads: int

    def to_json(self) -> dict[str, Any]:
        sites = [site for site in self.opened.sites if not site.tied_to]
        return {
            "format": FORMAT,
            "date": today(),
            "machine": describe(),
            "threads": self.threads,
            "model": {"name": self.opened.name, "digest": self.opened.digest},
            "calibration": {
                "sources": list(self.calibration.sources),
                "windows": self.calibration.windows,
                "window": self.calibration.window,
                "seed": self.calibration.seed,
            },
            "inputs": self.inputs,
            "evaluation": self.evaluation,
            "dense": self.dense,
            "rows": [point.to_json() for point in self.points],
            "curves": {name: [point.to_json() for point in found] for name, found in self.curves.items()},
            "matrices": [
                {"name": site.name, "type": site.type, "layer": site.layer, "shape": list(site.shape)} for site in sites
            ],
        }


def front(
    model: str,
    targets: Sequence[Target],
    calibration: Calibration,
    planning: Planning,
    *,
    out: Path | None,
    measure: bool,
    text: Path | None = None,
    window: int = 512,
    windows: int = 64,
    force: bool = False,
    threads: int = 2,
) -> Front:
    """Plan every target, price every technique alone at the same targets, and carry out and measure every plan.

    `targets` are of one kind. With `out`, front.json and index.html there are rewritten after every point, so that an
    interrupted run leaves what it has finished, and the next one continues behind it. `force` measures every point
    again, and replaces the front of another model.

    Raises:
        InputError: bad model, options, text or output folder; `measure` without `out`; `text` without `measure`.
        BudgetError: not one target can be reached (a single one that cannot is a row that says so). Failure: as `fit`.
    """
    planning = replace(planning, resident=targets[0].kind == "ram")
    planning.check()
    if measure and out is None:
        raise InputError("Measuring needs a folder for the bundles: give -o FOLDER, or --no-measure for plans alone.")
    if text is not None and not measure:
        raise InputError("--text is measured on; give it without --no-measure.")
    if out is not None:
        refuse_foreign_front(out)
    evaluation = Evaluation.read(text, window, windows) if text is not None else None
    opened = open_model(model)
    context = context_length(opened.architecture, planning.context)
    if evaluation is not None and window > context:
        raise InputError(f"A window of {window} tokens is longer than the bundle's context of {context}; lower one.")
    statistics, calibration_text = run_calibration(opened, calibration, extras=planning.extras)
    inputs = _inputs(opened, statistics, planning, context)
    if out is not None:
        refuse_other_front(out, inputs, force)
    points = _plans(opened, statistics, run_survey(opened, statistics, planning), planning, targets)
    curves = _curves(opened, statistics, planning, targets)
    described = evaluation.to_json() if evaluation is not None else None

    def made(dense: dict[str, Any] | None) -> Front:
        result = Front(opened, inputs, calibration, tuple(points), curves, described, dense, threads)
        if out is not None:
            write_front(out, result.to_json())
        return result

    if not measure or out is None:
        return made(None)
    result = made(None)
    workshop = Workshop(out, opened, statistics, calibration_text, evaluation, threads, again=force)
    dense = workshop.dense()
    for number, point in enumerate(points):
        if point.plan is not None:
            console().print(f"Point {number + 1} of {len(points)}: {point.target.label}", markup=False)
            points[number] = workshop.measured(point.target, point.plan)
            result = made(dense)
    return result


def _inputs(opened: OpenedModel, statistics: Statistics, planning: Planning, context: int) -> dict[str, Any]:
    """What all points of one front have in common."""
    return {
        "model": opened.digest,
        "statistics": cache_key(statistics.key),
        "method": planning.method,
        "allocation": planning.allocation,
        "candidates": list(planning.families),
        "seed": planning.seed,
        "context": context,
        "prompt_chunk": planning.prompt_chunk,
        "kv_cache": planning.kv_cache,
        "device": planning.device,
    }


def _plans(
    opened: OpenedModel, statistics: Statistics, prices: Survey, planning: Planning, targets: Sequence[Target]
) -> list[Point]:
    """A plan or a refusal for every target; BudgetError if there is no plan at all."""
    points = []
    with step("Planning the front") as tick:
        for number, target in enumerate(targets, start=1):
            try:
                plan = PLANNERS[target.kind](opened, statistics, prices, planning, target.value)
                points.append(Point(target, plan))
            except BudgetError as error:
                points.append(Point(target, refusal=error))
            tick(number, len(targets))
    refusals = [point.refusal for point in points if point.refusal is not None]
    if len(refusals) == len(points):
        raise refusals[-1]
    return points


def _curves(
    opened: OpenedModel, statistics: Statistics, planning: Planning, targets: Sequence[Target]
) -> dict[str, tuple[CurvePoint, ...]]:
    names = planning.families
    if len(names) < 2:
        return {}  # the front itself is that one technique
    done = 0

    def solved() -> None:
        nonlocal done
        done += 1
        tick(done, len(names) * len(targets))

    with step("Planning each technique alone") as tick:
        return {name: curve(opened, statistics, planning, name, targets, solved) for name in names}
