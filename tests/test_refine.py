"""`--refine`: wrong prices are found out by measuring, and only what measures better is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from edge_svd.calibrate.statistics import Statistics
from edge_svd.checkpoint import Checkpoint
from edge_svd.compress import compress
from edge_svd.fit import fit
from edge_svd.loading import load
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.plan import Plan
from edge_svd.planner.survey import Survey
from edge_svd.refine import refine
from edge_svd.report.fit_summary import fit_summary
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey

SIZE = 126_000
PLANNING = Planning()
CHEAPENED = ("v", "o", "down")


@dataclass(frozen=True)
class Made:
    opened: OpenedModel
    statistics: Statistics
    prices: Survey

    def plan(self, prices: Survey, size: int = SIZE) -> Plan:
        return run_plan(self.opened, self.statistics, prices, PLANNING, size)


@pytest.fixture
def made(tiny_model: Path, tiny_text_file: Path, cache: Path) -> Made:
    opened = open_model(str(tiny_model))
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=24, window=64))
    return Made(opened, statistics, run_survey(opened, statistics, PLANNING))


def cheapened(prices: Survey) -> Survey:
    """A price list that takes errors of some types for a thirtieth of what they are."""
    changed = {
        site.name: tuple(
            replace(c, loss=c.loss / 30, score=c.score / 30) if site.type in CHEAPENED else c
            for c in prices.candidates[site.name]
        )
        for site in prices.sites
    }
    return replace(prices, candidates=changed)


def divergence(dense: torch.nn.Module, checkpoint: Path, windows: torch.Tensor) -> float:
    with torch.no_grad():
        p, q = (torch.log_softmax(m(input_ids=windows).logits.double(), -1) for m in (dense, load(checkpoint)))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.slow
def test_wrong_prices_are_found_out(made: Made, tmp_path: Path) -> None:
    wrong = cheapened(made.prices)
    plan = made.plan(wrong)
    refined = refine(made.opened, made.statistics, wrong, plan, made.plan, tmp_path)
    assert refined.after < refined.before
    assert refined.plan.formats != plan.formats and refined.plan.file_bytes <= SIZE
    # Factors are shares of a whole: what was underpriced stands out against the rest.
    under = [factor for (kind, _), factor in refined.factors.items() if kind in CHEAPENED]
    over = [factor for (kind, _), factor in refined.factors.items() if kind not in CHEAPENED]
    assert under and over and min(under) > 3 * max(over)
    assert Checkpoint.open(refined.checkpoint).formats == refined.plan.formats
    held = made.statistics.held_out()
    first, last = (divergence(made.opened.model, tmp_path / name, held) for name in ("first", refined.checkpoint.name))
    assert last < first
    assert refined.before == pytest.approx(first, rel=0.3)


def test_a_plan_that_measures_worse_is_not_taken(made: Made, tmp_path: Path) -> None:
    plan = made.plan(made.prices)
    worse = made.plan(made.prices, 100_000)
    refined = refine(made.opened, made.statistics, made.prices, plan, lambda _: worse, tmp_path)
    assert refined.plan == plan and refined.after == refined.before and refined.checkpoint == tmp_path / "first"
    assert (tmp_path / "round-2").exists()  # it was tried twice


def test_an_equal_plan_is_not_measured_again(made: Made, tmp_path: Path) -> None:
    plan = made.plan(made.prices)
    refined = refine(made.opened, made.statistics, made.prices, plan, lambda _: plan, tmp_path)
    assert refined.plan == plan and [path.name for path in tmp_path.iterdir()] == ["first"]


def test_finished_matrices_are_taken_over(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, other = made.plan(made.prices), made.plan(made.prices, 130_000)
    first = compress(made.opened, plan, made.statistics, tmp_path / "first")
    whole = compress(made.opened, other, made.statistics, tmp_path / "whole")
    calls = []
    make = compress.__globals__["site_arrays"]
    monkeypatch.setitem(
        compress.__globals__, "site_arrays", lambda opened, site, *rest: calls.append(site) or make(opened, site, *rest)
    )
    again = compress(made.opened, other, made.statistics, tmp_path / "again", finished=first)
    different = [name for name in plan.sites if plan.formats[name].stored != other.formats[name].stored]
    assert 0 < len(different) < len(plan.sites)
    assert sorted(site.name for site in calls) == sorted(different)
    assert again.names == whole.names
    assert all((again.tensor(name) == whole.tensor(name)).all() for name in whole.names)


@pytest.mark.slow
def test_fit_with_refining(tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path) -> None:
    calibration = Calibration((str(tiny_text_file),), windows=24, window=64)
    result = fit(str(tiny_model), tmp_path / "bundle", SIZE, calibration, Planning(refine=True))
    assert result.refined is not None and result.refined.after <= result.refined.before
    assert result.plan == result.refined.plan
    assert result.measured["file_bytes"] == result.plan.file_bytes <= SIZE
    assert set(result.to_json()["refined"]) == {"kl_before", "kl_after", "factors"}
    assert f"refined   KL {result.refined.before:.4f} before" in fit_summary(result)
    assert not (tmp_path / "bundle.partial").exists()
