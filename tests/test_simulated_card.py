"""The way through a card gives what the way past it gives."""

from __future__ import annotations

import importlib
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from simulated_card import CARD, OnCard, simulated_card

from edge_svd.calibrate.collect import Estimator, inner_sites
from edge_svd.checkpoint import Checkpoint
from edge_svd.compare.matrices import Decomposed
from edge_svd.compress import compress
from edge_svd.compute_device import compute_device
from edge_svd.decompose import DECOMPOSITIONS, decompose
from edge_svd.loading import dense_parts
from edge_svd.models import OpenedModel, open_model
from edge_svd.planner.batches import batches, grouped, working_bytes
from edge_svd.planner.plan import Plan
from edge_svd.planner.pricing import FAMILIES, RESIDENT_FAMILIES, price
from edge_svd.planner.survey import survey
from edge_svd.planner.views import context_of
from edge_svd.steps import Calibration, Planning, run_calibration, run_plan


@pytest.fixture(scope="module")
def opened(tiny_model: Path) -> OpenedModel:
    return open_model(str(tiny_model))


@pytest.fixture(scope="module")
def statistics(opened: OpenedModel, tiny_text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = Calibration((str(tiny_text_file),), windows=8, window=32, estimator=Estimator(weighted=True))
    return run_calibration(opened, settings, tmp_path_factory.mktemp("s") / "statistics")[0]


def contexts(opened: OpenedModel, statistics: Any, method: str, strategy: str = "second-order") -> Any:
    def of(site: Any) -> Any:
        module = opened.model.get_submodule(site.name)
        return context_of(site, module, opened.architecture, statistics, method, strategy)

    return of


def test_the_card_refuses_what_a_card_refuses() -> None:
    with simulated_card():
        x, y = torch.ones(3, device="cuda"), torch.ones(3)
        assert compute_device().type == "cuda" and x.device == CARD and y.device.type == "cpu"
        assert isinstance(y.to("cuda"), OnCard) and not isinstance(x.cpu(), OnCard)
        assert isinstance(x.new_zeros(2), OnCard) and isinstance(torch.zeros(2, device=x.device), OnCard)
        assert float((x + y.to(x.device)).sum()) == 6
        for bad in (lambda: x + y, lambda: torch.cat([x, y]), lambda: torch.linalg.vecdot(x, y)):
            with pytest.raises(RuntimeError, match="same device"):
                bad()
        with pytest.raises(TypeError, match="cuda"):
            x.numpy()
        x[torch.tensor([0])] = 5
        assert x.tolist() == [5, 1, 1]


@pytest.mark.parametrize("method", DECOMPOSITIONS.names)
def test_every_method_decomposes_there(method: str, opened: OpenedModel, statistics: Any) -> None:
    site = next(site for site in opened.sites if site.type == "down")
    make = contexts(opened, statistics, method)
    here = decompose(method)(make(site).matrix, make(site))
    with simulated_card():
        context = make(site)
        there = decompose(method)(context.matrix, context)
        assert isinstance(there.b, OnCard) and isinstance(there.a, OnCard) and isinstance(there.energy, OnCard)
        assert isinstance(there.at(3).b, OnCard)
        back = there.to("cpu")
        assert not isinstance(back.b, OnCard) and not isinstance(back.at(3).b, OnCard)
        assert torch.allclose(back.truncated(5), here.truncated(5), atol=1e-9)


@pytest.mark.parametrize(("method", "strategy"), [("io-svd", "second-order"), ("svd-llm", "first-order")])
def test_prices_are_the_same(method: str, strategy: str, opened: OpenedModel, statistics: Any) -> None:
    make = contexts(opened, statistics, method, strategy)
    families = (*FAMILIES, *RESIDENT_FAMILIES) if strategy == "second-order" else ("int8", "low-rank")
    for site in [site for site in opened.sites if site.layer <= 0 and site.type in ("embedding", "q", "down")]:
        here = price(make(site), families)
        with simulated_card():
            there = price(make(site), families)
        assert [c.format for c in there.candidates] == [c.format for c in here.candidates]
        for one, other in zip(there.candidates, here.candidates, strict=True):
            assert one.loss == pytest.approx(other.loss, rel=1e-4, abs=1e-12)
            assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-12)
        assert there.activations == pytest.approx(here.activations, rel=1e-5)
        for rounding, (loss, error) in here.perturbed.items():
            assert there.perturbed[rounding][0] == pytest.approx(loss, rel=1e-4)
            assert not isinstance(there.perturbed[rounding][1].values, OnCard)
            assert float((there.perturbed[rounding][1].matrix() - error.matrix()).norm()) <= 0.05 * float(
                error.matrix().norm()
            )


@pytest.mark.parametrize(("method", "allocation"), [("io-svd", "first-order"), ("nsvd-i", "zero-sum")])
def test_comparisons_are_the_same(method: str, allocation: str, opened: OpenedModel, statistics: Any) -> None:
    found = []
    for card in (False, True):
        with simulated_card() if card else torch.no_grad():
            made = Decomposed(opened, statistics, method)
            choice = made.choose(allocation, 0.6, made.priced(allocation), storage="pivoted")
            found.append((choice.ranks, made.stored(made.factors(choice), "pivoted")))
    (ranks, factors), (other_ranks, other_factors) = found
    assert other_ranks == ranks
    for name, (b, a) in factors.items():
        w, (b2, a2) = b @ a, other_factors[name]
        assert not isinstance(b2, OnCard)
        assert torch.allclose(b2 @ a2, w, atol=1e-5 * float(w.abs().max()))


def test_a_plan_and_its_checkpoint_are_the_same(opened: OpenedModel, statistics: Any, tmp_path: Path) -> None:
    def made(name: str) -> tuple[Plan, Checkpoint]:
        # No cache: prices of one way must not serve for the other.
        planning = Planning(candidates="low-rank,pivoted")
        options = {"method": planning.method, "allocation_name": planning.allocation, "kinds": planning.families}
        prices = survey(opened.model, opened.architecture, statistics, **options)
        plan = run_plan(opened, statistics, prices, planning, 150_000)
        return plan, compress(opened, plan, statistics, tmp_path / name)

    plan, here = made("here")
    with simulated_card():
        other, there = made("there")
    assert other.file_bytes == pytest.approx(plan.file_bytes, rel=1e-3)
    losses = [sum(site.loss for site in of.sites.values()) for of in (plan, other)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    same = [
        site for site in opened.sites if site.name in plan.sites and other.formats[site.name] == plan.formats[site.name]
    ]
    assert len(same) >= len(plan.sites) - 2
    assert {"low-rank"} <= {plan.formats[site.name].kind for site in same}
    for site in same:
        one, two = (reduce(torch.matmul, dense_parts(of, site)) for of in (here, there))
        assert float((one - two).norm()) <= 0.02 * float(one.norm()), site.name


def test_groups_are_of_one_shape_and_fit(opened: OpenedModel) -> None:
    sites = inner_sites(opened.sites)
    for most in (0, 3 * working_bytes(sites[0].shape), 2**40):
        groups = grouped(sites, most)
        assert [site for group in groups for site in group] == sites
        for group in groups:
            assert len({site.shape for site in group}) == 1
            assert len(group) == 1 or len(group) * working_bytes(group[0].shape) <= most
    assert max(map(len, grouped(sites, 2**40))) > 1


def test_factors_of_a_group_come_together(
    opened: OpenedModel, statistics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[int] = []
    whole = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (stacks.append(len(x) if x.ndim > 2 else 1), whole(x))[1])
    sites = [site for site in inner_sites(opened.sites) if site.type in ("gate", "up")]
    with simulated_card():
        made = [of() for group in batches(sites, contexts(opened, statistics, "io-svd")) for of in group]
    assert stacks == [len(sites)]
    assert [of.site for of in made] == sites
    alone = [contexts(opened, statistics, "io-svd")(site).factorization for site in sites]
    for of, found in zip(made, alone, strict=True):
        energy = of.__dict__["factorization"].to("cpu").energy
        assert np.allclose(energy.as_subclass(torch.Tensor).numpy(), found.energy.numpy())


def test_its_decompositions_are_held_against_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    row = importlib.import_module("decompositions").row
    with simulated_card():
        found = row(48, 32, 2)
        assert compute_device().type == "cuda"
    assert found["what"] == "2 of 48x32" and abs(found["loss_above_float64"]) < 1e-9
    assert found["one_by_one_s"] > 0 and found["together_s"] > 0
