"""Prices of rank components against the error matrices themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edge_svd.allocate import allocation
from edge_svd.decompose import decompose
from edge_svd.planner.components import component_table
from edge_svd.planner.generators.low_rank import from_table
from edge_svd.quantize.components import round_components

M, N = 48, 80


def context(method: str, strategy: str, rank_deficient: bool = False) -> Any:
    """What `component_table` reads of a site, with random statistics."""
    rng = np.random.default_rng(5)
    x, g = rng.standard_normal((N, 20 if rank_deficient else 400)), rng.standard_normal((M, 300))
    x *= np.exp(rng.standard_normal(N))[:, None]
    weight = torch.from_numpy(rng.standard_normal((M, N))).float()
    c_in, c_out = torch.from_numpy(x @ x.T / 400), torch.from_numpy(g @ g.T / 300)
    return SimpleNamespace(
        weight=weight,
        w=weight.double(),
        c_in=c_in,
        c_out=c_out,
        gradient=torch.from_numpy(rng.standard_normal((M, N))),
        strategy=allocation(strategy),
        factorization=decompose(method)(weight.double(), c_in, c_out),
    )


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


def test_candidates_fall_in_loss_with_rank_and_stay_below_dense() -> None:
    found = from_table(component_table(context("io-svd", "second-order")), (M, N))
    assert found and all(c.bytes < M * N + 2 * M for c in found)
    for k16 in (0, 16):
        losses = [c.loss for c in found if c.format.k16 == k16]
        assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))
