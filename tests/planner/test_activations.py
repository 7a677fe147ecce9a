"""Predicted loss of rounding a product's inputs against rounding them."""

from __future__ import annotations

import pytest
import torch

from edge_svd.formats import ACTIVATION_BLOCKS, WHOLE_PASS
from edge_svd.planner.activation_probe import PASS, round_by_pass, round_in_blocks
from edge_svd.planner.activations import MEASURED, input_losses


def test_rounding_takes_the_largest_to_the_limit() -> None:
    x = torch.tensor([[1.0, -2.0, 0.26, 4.0], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[4 / 127 * 32, -2.0157, 4 / 127 * 8, 4.0], [0.0] * 4])
    torch.testing.assert_close(round_in_blocks(x, 4), expected, atol=1e-4, rtol=0)
    assert round_in_blocks(x, 2)[0, 1] == -2.0  # the largest of its own pair


@pytest.mark.parametrize("block", ACTIVATION_BLOCKS)
@pytest.mark.parametrize("outliers", (False, True))
def test_loss_is_that_of_rounding(block: int, outliers: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = 128, 48
    size = torch.rand(n, generator=generator, dtype=torch.float64) + 0.5
    if outliers:
        size[::50] = 40.0
    x = torch.randn(4000, n, generator=generator, dtype=torch.float64) * size
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    g = torch.randn(200, m, generator=generator, dtype=torch.float64)
    c_out = g.T @ g / len(g)
    error = (round_in_blocks(x, block) - x) @ w.T
    measured = 0.5 * float(((error @ c_out) * error).sum(1).mean())
    found = input_losses(x.square().mean(0), ((c_out @ w) * w).sum(0))[block] / MEASURED
    assert found == pytest.approx(measured, rel=0.25)  # inputs of unequal size have a larger maximum than assumed


def test_loss_is_that_of_one_scale_a_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    n, m = 128, 48
    x = torch.randn(8, PASS, n, generator=generator, dtype=torch.float64)
    x[3] *= 5  # one pass of larger numbers has a coarser scale, the others do not
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    g = torch.randn(200, m, generator=generator, dtype=torch.float64)
    c_out = g.T @ g / len(g)
    error = (round_by_pass(x) - x) @ w.T
    measured = 0.5 * float(((error @ c_out) * error).sum(-1).mean())
    squared = float((x.amax((1, 2)) - x.amin((1, 2))).square().mean())
    found = squared * input_losses(x.square().mean((0, 1)), ((c_out @ w) * w).sum(0))[WHOLE_PASS]
    assert found == pytest.approx(measured, rel=0.05)


def test_one_scale_a_pass_has_no_more_than_its_steps_and_holds_zero() -> None:
    x = torch.tensor([[[0.0, 1.0], [-0.5, 2.0]]]).repeat(2, PASS, 1)
    x[1] *= 100
    found = round_by_pass(x, 5)
    assert torch.equal(found[0].unique(), torch.tensor([-0.5, 0.0, 1.0, 2.0])) and (found[1] == 100 * found[0]).all()
    assert (round_by_pass(torch.zeros(1, 3, 4)) == 0).all()


def test_wider_blocks_lose_more() -> None:
    generator = torch.Generator().manual_seed(1)
    power, weight = (torch.rand(256, generator=generator, dtype=torch.float64) for _ in range(2))
    losses = input_losses(power, weight)
    del losses[WHOLE_PASS]
    assert list(losses) == [16, 32, 64, 128, 256]
    assert list(losses.values()) == sorted(losses.values())


def test_blocks_that_do_not_divide_are_left_out() -> None:
    ones = torch.ones(90, dtype=torch.float64)
    assert list(input_losses(ones, ones)) == [16, 32, WHOLE_PASS]  # padded to 96
