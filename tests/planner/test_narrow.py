"""Errors in int8: what they keep of an error matrix, and that both ways of using them agree."""

from __future__ import annotations

import pytest
import torch

from edge_svd.planner.narrow import Narrow


def errors(m: int = 40, n: int = 96) -> torch.Tensor:
    """Of columns a thousand times apart, one of them without errors."""
    made = torch.randn(m, n, generator=torch.Generator().manual_seed(3))
    made *= torch.logspace(-3, 0, n)
    made[:, 7] = 0.0
    return made


def test_every_column_keeps_its_errors() -> None:
    error = errors()
    lost = (Narrow.of(error).matrix() - error).square().sum(0)
    assert (lost <= 3e-4 * error.square().sum(0)).all()
    assert torch.equal(Narrow.of(torch.zeros(4, 6)).matrix(), torch.zeros(4, 6))


def test_what_they_do_to_inputs() -> None:
    made, x = Narrow.of(errors()), torch.randn(5, 96, generator=torch.Generator().manual_seed(4))
    wanted = x @ made.matrix().T
    assert (made.moved(x) - wanted).norm() < 0.01 * wanted.norm()  # the product is in bfloat16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    error = errors()
    error[3, 5] = bad
    assert not torch.isfinite(Narrow.of(error).matrix()).all()
