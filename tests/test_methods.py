"""Every decomposition and allocation as an option of a fit: planned, rounded, and found again in the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_svd.allocate import allocation
from edge_svd.calibrate.collect import inner_sites
from edge_svd.compress import compress
from edge_svd.errors import BudgetError, InputError
from edge_svd.loading import dense_parts
from edge_svd.models import open_model
from edge_svd.planner.views import context_of
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan, run_survey


@pytest.mark.parametrize("options", [("nsvd-i", "second-order"), ("nid-ii:share=0.5", "uniform"), ("fwsvd", "grouped")])
def test_a_plan_by_a_method_holds_its_components(
    options: tuple[str, str], tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path
) -> None:
    method, rule = options
    opened = open_model(str(tiny_model))
    planning = Planning(method, rule, "low-rank,int8")
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), 8, 64), extras=planning.extras)
    prices = run_survey(opened, statistics, planning)
    with pytest.raises(BudgetError) as refused:
        run_plan(opened, statistics, prices, planning, 1000)
    plan = run_plan(opened, statistics, prices, planning, int(1.05 * refused.value.smallest))
    checkpoint = compress(opened, plan, statistics, tmp_path / "checkpoint")
    factored = [site for site in inner_sites(opened.sites) if plan.formats[site.name].factored]
    assert factored
    for site in factored:
        module = opened.model.get_submodule(site.name)
        context = context_of(site, module, opened.architecture, statistics, method, rule)
        expected = context.factorization.truncated(plan.formats[site.name].rank).float()
        b, a = dense_parts(checkpoint, site)
        assert float((b @ a - expected).norm() / expected.norm()) < (0.3 if plan.formats[site.name].k4 else 0.02)


def test_statistics_that_a_method_lacks_are_named(
    tiny_model: Path, tiny_text_file: Path, cache: Path, tmp_path: Path
) -> None:
    opened = open_model(str(tiny_model))
    settings = Calibration((str(tiny_text_file),), 8, 64)
    statistics, _ = run_calibration(opened, settings, tmp_path / "s", extras=())
    for method, rule, words in [
        ("asvd", "uniform", "no activations"),
        ("fwsvd", "uniform", "no fisher"),
        ("svd", "first-order", "no gradients"),
    ]:
        with pytest.raises(InputError, match=words):
            run_survey(opened, statistics, Planning(method, rule, "low-rank"))
    assert Planning("asvd", "first-order").extras == {"activations", "gradients"}
    assert allocation("uniform").rule is not None and torch.is_tensor(statistics.held_out())
