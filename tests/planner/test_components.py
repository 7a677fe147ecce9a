"""Prices of rank components against the error matrices themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edge_svd.allocate import allocation
from edge_svd.compress import rounded_components
from edge_svd.decompose import Metrics, decompose
from edge_svd.formats import SiteFormat
from edge_svd.planner.components import component_table
from edge_svd.planner.generators.low_rank import from_tables
from edge_svd.quantize.components import round_components

M, N = 48, 80


def context(method: str, strategy: str, rank_deficient: bool = False) -> Any:
    """What `component_table` reads of a site, with random statistics."""
    rng = np.random.default_rng(5)
    x, g = rng.standard_normal((N, 20 if rank_deficient else 400)), rng.standard_normal((M, 300))
    x *= np.exp(rng.standard_normal(N))[:, None]
    weight = torch.from_numpy(rng.standard_normal((M, N))).float()
    c_in, c_out = torch.from_numpy(x @ x.T / 400), torch.from_numpy(g @ g.T / 300)
    made = SimpleNamespace(
        matrix=weight,
        w=weight.double(),
        c_in=c_in,
        c_out=c_out,
        gradient=torch.from_numpy(rng.standard_normal((M, N))),
        changes=None,
        strategy=allocation(strategy),
        factorization=decompose(method)(weight.double(), Metrics(c_in, c_out)),
    )
    made.at = lambda rank: made
    return made


def price(error: torch.Tensor, c: Any) -> float:
    return 0.5 * float(torch.trace(c.c_out @ error @ c.c_in @ error.T))


@pytest.mark.parametrize("method", ["svd", "svd-llm-v2", "io-svd"])
@pytest.mark.parametrize("strategy", ["second-order", "first-order"])
def test_truncation_is_the_price_of_the_missing_part(method: str, strategy: str) -> None:
    c = context(method, strategy)
    table = component_table(c)
    f = c.factorization
    for rank in (1, 16, 32, 47, 48):
        kept = table.order[:rank]
        error = c.w - f.b[:, kept] @ f.a[kept]
        assert float(table.truncation[rank]) == pytest.approx(
            price(error, c), rel=1e-3, abs=1e-4 * float(table.truncation[0])
        )
    assert float(table.truncation[0]) == pytest.approx(price(c.w, c), rel=1e-3)


def test_rank_deficient_statistics_are_priced() -> None:
    c = context("svd-llm-v2", "second-order", rank_deficient=True)
    table = component_table(c)
    assert torch.isfinite(table.truncation).all()
    assert float(table.truncation[32]) < 1e-4 * float(table.truncation[0])


@pytest.mark.parametrize("rank", [16, 48])
def test_rounding_price_of_each_component(rank: int) -> None:
    c = context("io-svd", "second-order")
    table = component_table(c)
    f = c.factorization
    b_q, a_q, scale = round_components(f.b, f.a, 8)
    for r in (0, rank // 2, rank - 1):
        error = torch.outer(f.b[:, r], f.a[r]) - float(scale[r]) * torch.outer(b_q[:, r].double(), a_q[r].double())
        assert float(table.rounding[r]) == pytest.approx(price(error, c), rel=2e-2)
    total = sum(float(table.rounding[r]) for r in range(rank))
    whole = f.b[:, :rank] @ f.a[:rank] - (b_q[:, :rank].double() * scale[:rank].double()) @ a_q[:rank].double()
    # Components round independently, so cross terms cancel on average.
    assert total == pytest.approx(price(whole, c), rel=0.35)


def test_first_order_orders_by_the_gradient() -> None:
    c = context("io-svd", "first-order")
    table = component_table(c)
    f = c.factorization
    scores = torch.tensor([abs(float((c.gradient * torch.outer(f.b[:, r], f.a[r])).sum())) for r in range(M)])
    assert bool((scores[table.order].diff() <= 1e-9).all())
    assert float(table.score[0]) == pytest.approx(float(scores.sum())) and float(table.score[M]) == 0


def test_first_order_orders_by_the_windows_where_they_are_known() -> None:
    c = context("io-svd", "first-order")
    c.changes = torch.from_numpy(np.random.default_rng(7).standard_normal((5, M)))
    table = component_table(c)
    scores = c.changes.abs().mean(0)
    assert table.order.tolist() == torch.argsort(scores, descending=True).tolist()
    assert float(table.score[0]) == pytest.approx(float(scores.sum())) and float(table.score[M]) == 0


def test_candidates_fall_in_loss_with_rank_and_stay_below_dense() -> None:
    table = component_table(context("io-svd", "second-order"))
    found = from_tables(lambda _: table, (M, N))
    assert found and all(c.bytes < M * N + 2 * M for c in found)
    for mix in ((0, 0), (16, 0)):
        losses = [c.loss for c in found if (c.format.k16, c.format.k4) == mix]
        assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


@pytest.mark.parametrize(("k4", "k8", "k16"), [(32, 0, 0), (32, 16, 0), (0, 0, 16)])
def test_a_mix_of_precisions_loses_what_is_predicted(k4: int, k8: int, k16: int) -> None:
    c = context("io-svd", "second-order")
    c.components = component_table(c)
    fmt = SiteFormat("low-rank", k8, k16, k4)
    # A matrix so small has 4-bit factors of every rank below break-even, and others only of some.
    listed = {found.format: found.loss for found in from_tables(lambda _: c.components, (M, 10 * N))}
    parts = rounded_components(c, fmt)
    made = sum((b.double() * scale.double()) @ a[:, :N].double() for b, a, scale in parts.values())
    assert {bits: len(scale) for bits, (_, _, scale) in parts.items()} == {
        bits: rank for bits, rank in ((4, k4), (8, k8), (16, k16)) if rank
    }
    measured = price(c.w - made, c) + c.components.handover(fmt.rank)
    assert listed[fmt] == pytest.approx(measured, rel=0.2)
