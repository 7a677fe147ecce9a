"""`--refine`: a plan put to the test, its prices corrected by what it really loses, and made again.

Predicted losses add up only nearly. The choices of a plan are rounded as they would ship and measured in groups, all
matrices of a type in one family of formats together, those with the largest predicted loss first; the prices around
them are multiplied with what was measured over what was predicted, but by no more than a factor of TRUST, because far
from the plan the measurement says little. The new plan is measured as a whole and taken only if it is better; if it is
not, the corrections are halved (in logarithms) and tried once more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_svd.calibrate.statistics import Statistics
from edge_svd.checkpoint import Checkpoint
from edge_svd.compress import compressed
from edge_svd.models import OpenedModel
from edge_svd.planner.candidate import Candidate
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.shipped import as_shipped

GROUPS = 8
"""Groups measured on their own."""

TRUST = 4.0
ROUNDS = 2

Group = tuple[str, str]
"""Type of matrix, family of formats."""


@dataclass(frozen=True)
class Refined:
    """The better plan; KL to the dense model on held-out calibration windows of the first plan and of this one, nats
    per token; the checkpoint that it was measured with, and the factors of the groups that were measured."""

    plan: Plan
    before: float
    after: float
    checkpoint: Path
    factors: Mapping[Group, float]

    def to_json(self) -> dict[str, Any]:
        factors = {" ".join(group): factor for group, factor in self.factors.items()}
        return {"kl_before": self.before, "kl_after": self.after, "factors": factors}


def refine(
    opened: OpenedModel,
    statistics: Statistics,
    prices: Survey,
    plan: Plan,
    planned: Callable[[Survey], Plan],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Measure `plan`, correct the prices, and return the best of the plans that `planned` makes of them.

    Checkpoints of the plans are written into `folder` (`first`, `round-1`, …).

    Raises:
        InputError, Failure: as `compress`; NaN or Inf on the held-out windows.
    """
    meter = HeldOutKl(opened.model, statistics.held_out(), opened.architecture)
    total = 1 + GROUPS + ROUNDS
    best = compressed(opened, plan, statistics, folder / "first")
    before = after = _measured(opened, meter, best, plan, list(plan.sites))
    progress(1, total)
    factors = _factors(opened, meter, best, plan, before, lambda done: progress(1 + done, total))
    chosen, strength = plan, 1.0
    for number in range(ROUNDS):
        tried = planned(_corrected(prices, factors, strength))
        if tried.formats != plan.formats:
            made = compressed(opened, tried, statistics, folder / f"round-{number + 1}", finished=best)
            kl = _measured(opened, meter, made, tried, list(tried.sites))
            if kl < after:
                chosen, after, best = tried, kl, made
                break
        progress(2 + GROUPS + number, total)
        strength /= 2
    progress(total, total)
    return Refined(chosen, before, after, best.path, factors)


def group_of(types: Mapping[str, str], name: str, plan: Plan) -> Group:
    """The group of one choice of a plan."""
    return types[name], plan.sites[name].format.family


def _factors(
    opened: OpenedModel,
    meter: HeldOutKl,
    checkpoint: Checkpoint,
    plan: Plan,
    whole: float,
    progress: Callable[[int], None],
) -> dict[Group, float]:
    """Measured over predicted loss of the groups that lose most, as shares of what all of them lose together."""
    types = {site.name: site.type for site in opened.sites}
    groups: dict[Group, list[str]] = {}
    for name in plan.sites:
        groups.setdefault(group_of(types, name, plan), []).append(name)
    predicted = {group: sum(plan.sites[name].loss for name in names) for group, names in groups.items()}
    heaviest = sorted(groups, key=lambda group: -predicted[group])[:GROUPS]
    measured = {}
    for done, group in enumerate(heaviest):
        measured[group] = _measured(opened, meter, checkpoint, plan, groups[group])
        progress(done + 1)
    rest = sum(loss for group, loss in predicted.items() if group not in measured)
    alone = sum(measured.values()) + rest
    # What groups lose together beyond their sum belongs to all of them in proportion.
    common = whole / alone if alone > 0 and whole > 0 else 1.0
    return {
        group: common * loss / predicted[group] if predicted[group] > 0 and loss > 0 else common
        for group, loss in measured.items()
    }


def _corrected(prices: Survey, factors: Mapping[Group, float], strength: float) -> Survey:
    """The price list with every candidate's loss multiplied: its own group's factor, or that of its type's groups."""

    def trusted(factor: float) -> float:
        return float(min(max(factor, 1 / TRUST), TRUST) ** strength)

    by_type: dict[str, list[float]] = {}
    for (kind, _), factor in factors.items():
        by_type.setdefault(kind, []).append(trusted(factor))
    common = {kind: sum(found) / len(found) for kind, found in by_type.items()}

    def priced(kind: str, c: Candidate) -> Candidate:
        own = factors.get((kind, c.format.family))
        factor = trusted(own) if own is not None else common.get(kind, 1.0)
        return replace(c, loss=c.loss * factor, score=c.score * factor)

    changed = {site.name: tuple(priced(site.type, c) for c in prices.candidates[site.name]) for site in prices.sites}
    return replace(prices, candidates=changed)


def _measured(opened: OpenedModel, meter: HeldOutKl, checkpoint: Checkpoint, plan: Plan, names: list[str]) -> float:
    """KL to the dense model with these matrices as the checkpoint has them and their inputs rounded as at run time."""
    with as_shipped(opened, checkpoint, plan, names):
        return meter.measure()
