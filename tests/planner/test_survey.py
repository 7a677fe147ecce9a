"""What the price list assumes about a model's modules."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from edge_svd.models import open_model
from edge_svd.planner import pricing
from edge_svd.planner.loss import quadratic
from edge_svd.planner.pricing import price
from edge_svd.planner.survey import Survey, survey
from edge_svd.planner.views import context_of, lookup_scale
from edge_svd.steps import Calibration, run_calibration

sys.path.append(str(Path(__file__).parents[1] / "export"))

from export_tiny import FAMILIES, tiny_model  # noqa: E402


@pytest.mark.parametrize("family", list(FAMILIES))
def test_lookup_scale_is_what_the_module_does(family: str) -> None:
    """In every version of transformers, wherever it puts Gemma's multiplier."""
    module = tiny_model(family).get_input_embeddings()
    ids = torch.arange(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(module(ids), module.weight[ids] * lookup_scale(module))


@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.down_proj"])
def test_perturbations_are_what_their_predictions_are_of(
    name: str, tiny_model: Path, tiny_text_file: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor is measured over predicted: both must be of the same error."""
    monkeypatch.setenv("EDGE_SVD_CACHE", str(shared_cache))
    opened = open_model(str(tiny_model))
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=64))
    (site,) = (s for s in opened.sites if s.name == f"model.layers.1.{name}")
    module = opened.model.get_submodule(site.name)
    context = context_of(site, module, opened.architecture, statistics, "io-svd", "second-order")
    perturbed = price(context).perturbed
    for rounding, share in (("factored", 0.02), ("coded", 0.25)):
        predicted, error = perturbed[rounding]
        assert quadratic(error.matrix(), context.c_in, context.c_out) == pytest.approx(predicted, rel=share)


def test_only_what_may_be_chosen_is_priced_and_at_the_same_price(
    tiny_model: Path, tiny_text_file: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SVD_CACHE", str(shared_cache))
    opened = open_model(str(tiny_model))
    statistics, _ = run_calibration(opened, Calibration((str(tiny_text_file),), windows=8, window=64))

    def priced(kinds: tuple[str, ...], cache: Path | None) -> Survey:
        return survey(
            opened.model,
            opened.architecture,
            statistics,
            method="io-svd",
            allocation_name="second-order",
            kinds=kinds,
            cache=cache,
        )

    few = ("low-rank", "blocks-4")
    alone = priced(few, tmp_path)
    (file,) = tmp_path.iterdir()
    listed = {row[0]["kind"] for rows in json.loads(file.read_text())["prices"].values() for row in rows}
    assert listed == {"int8", "low-rank", "blocks", "trellis", "table"}
    assert priced(few, tmp_path) == alone and len(list(tmp_path.iterdir())) == 1
    assert priced(few, statistics.path) == alone == priced(few, None)
    every = priced(pricing.FAMILIES, statistics.path)
    for name, found in alone.candidates.items():
        known = {c.format: c for c in every.candidates[name]}
        assert {c.format: c for c in found} == {fmt: known[fmt] for fmt in (c.format for c in found)}
