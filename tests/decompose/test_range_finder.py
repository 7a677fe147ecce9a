"""The first components of a wide matrix: as good as all eigenvectors would give, or refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.decompose import Metrics, decompose
from edge_svd.decompose.factorization import split
from edge_svd.decompose.range_finder import TOLERANCE, first_directions, worth_it

SIDE = 240
SPECTRA = {
    "steep": lambda i: torch.exp(-i / 3),
    "slow": lambda i: (1 + i) ** -0.5,
    "a step behind the wanted ones": lambda i: torch.where(i < 12, 1.0, 0.5),
    "a step among the wanted ones": lambda i: torch.where(i < 5, 1.0, 0.99),
    "few, and nothing else": lambda i: (i < 7).double(),
    "all alike": lambda i: torch.ones_like(i),
}


def matrix(sigma: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """[m, n] with these singular values."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(k, k, generator=generator, dtype=torch.float64))[0] for k in (len(sigma), n))
    return (u * sigma) @ v[: len(sigma)]


def lost(m: torch.Tensor, q: torch.Tensor) -> float:
    return float((m - q @ (q.T @ m)).square().sum())


@pytest.mark.parametrize("rank", [1, 12, 30])
@pytest.mark.parametrize("name", SPECTRA)
def test_no_more_is_lost_than_was_promised(name: str, rank: int) -> None:
    sigma = SPECTRA[name](torch.arange(SIDE, dtype=torch.float64))
    m = matrix(sigma, SIDE + 60)
    q = first_directions(m @ m.T, rank)
    assert q is not None
    torch.testing.assert_close(q.T @ q, torch.eye(rank).double(), rtol=0, atol=1e-10)
    least = float(sigma.square().sort(descending=True).values[rank:].sum())
    assert lost(m, q) <= (1 + TOLERANCE) * least + 1e-11 * float(sigma.square().sum())


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    rank=st.integers(1, 10),
    tolerance=st.sampled_from([1e-1, 1e-3, 1e-5]),
    power=st.floats(0, 3),
)
def test_a_promise_is_kept_or_not_made(seed: int, rank: int, tolerance: float, power: float) -> None:
    sigma = torch.rand(80, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power
    m = matrix(sigma, 80, seed)
    q = first_directions(m @ m.T, rank, tolerance, seed)
    if q is not None:
        least = float(sigma.square().sort(descending=True).values[rank:].sum())
        assert lost(m, q) <= (1 + tolerance) * least + 1e-11 * float(sigma.square().sum())


def test_what_cannot_be_shown_is_not_claimed() -> None:
    """Singular values fall by a millionth from one to the next: no few steps tell the first ones from the others."""
    m = matrix(1 - 1e-6 * torch.arange(SIDE, dtype=torch.float64), SIDE)
    assert first_directions(m @ m.T, 4, 1e-9) is None


@pytest.mark.parametrize("shape", [(1030, 1500), (1500, 1030)])
def test_few_components_of_a_wide_matrix(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss in the metrics, and the factors' form, with the range finder and without it."""
    assert worth_it(*shape, 16) and not worth_it(*shape, 200) and not worth_it(1000, 2000, 16)
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(*shape, generator=generator)
    c_out, c_in = (matrix(torch.exp(-torch.arange(k, dtype=torch.float64) / 80) + 1e-3, k, 2) for k in shape)
    c_in, c_out = c_in @ c_in.T, c_out @ c_out.T
    few = decompose("io-svd")(w, Metrics(c_in, c_out), 16)
    monkeypatch.setattr("edge_svd.decompose.factorization.worth_it", lambda m, n, rank: False)
    whole = decompose("io-svd")(w, Metrics(c_in, c_out), 16)
    all_of_them = decompose("io-svd")(w, Metrics(c_in, c_out))
    assert few.b.shape == whole.b.shape == (shape[0], 16) and few.a.shape == (16, shape[1])
    torch.testing.assert_close(whole.b, all_of_them.b[:, :16])
    assert torch.equal(whole.energy, all_of_them.energy[:16])
    total = float(all_of_them.energy.sum())
    assert total - float(few.energy.sum()) <= (1 + TOLERANCE) * (total - float(whole.energy.sum()))
    torch.testing.assert_close(few.truncated(1), whole.truncated(1), rtol=0, atol=1e-3 * float(w.abs().max()))


def test_the_first_components_are_a_prefix() -> None:
    m = matrix(torch.rand(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64), 30)
    for side in (m, m.T):
        u, v, energy = split(side)
        few = split(side, 6)
        assert torch.equal(few[0], u[:, :6]) and torch.equal(few[1], v[:6]) and torch.equal(few[2], energy[:6])
        assert [len(part.T) for part in split(side, 0)[:1]] == [0]
