"""Many matrices decomposed at once are what each is on its own."""

from __future__ import annotations

import pytest
import torch

from edge_svd.decompose import DECOMPOSITIONS, Metrics, decompose, decompose_together
from edge_svd.decompose.factorization import split, split_together


def problems(shapes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[Metrics]]:
    matrices, sites = [], []
    for seed, (m, n) in enumerate(shapes):
        generator = torch.Generator().manual_seed(seed)
        x, g, w = (torch.randn(rows, width, generator=generator).double() for rows, width in ((90, n), (90, m), (m, n)))
        c_in, c_out = x.T @ x / 90, g.T @ g / 90
        matrices.append(w)
        sites.append(Metrics(c_in, c_out, None, c_in.diagonal().sqrt(), c_out.diagonal()))
    return matrices, sites


@pytest.mark.parametrize("method", DECOMPOSITIONS.names)
def test_together_or_one_by_one(method: str) -> None:
    matrices, sites = problems([(24, 16), (24, 16), (16, 24), (20, 16), (9, 31)])
    for w, site, found in zip(matrices, sites, decompose_together(method, matrices, sites), strict=True):
        alone = decompose(method)(w, site)
        for rank in (3, len(alone.energy)):
            assert torch.allclose(found.truncated(rank), alone.truncated(rank), atol=1e-9)
        assert torch.allclose(found.energy, alone.energy) and found.added == alone.added


def test_eigenvectors_of_one_width_come_from_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices, _ = problems([(24, 16), (16, 24), (16, 16), (30, 9)])
    matrices.append(torch.zeros(16, 20).double())
    calls: list[tuple[int, ...]] = []
    whole = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda stack: (calls.append(tuple(stack.shape)), whole(stack))[1])
    found = split_together(matrices)
    assert sorted(calls) == [(1, 9, 9), (4, 16, 16)]
    for matrix, (u, v, energy) in zip(matrices, found, strict=True):
        assert torch.allclose(u @ v, matrix, atol=1e-12)
        assert torch.allclose(energy.sqrt(), torch.linalg.svdvals(matrix), atol=1e-9)
        for one, other in zip(split(matrix), (u, v, energy), strict=True):
            assert torch.equal(one, other)


def test_one_that_fails_does_not_spoil_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices, _ = problems([(12, 16), (12, 18)])
    whole = torch.linalg.eigh

    def failing(stack: torch.Tensor) -> object:
        if stack.ndim > 2:
            raise torch.linalg.LinAlgError("one of them did not converge")
        return whole(stack)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    for matrix, (u, v, _) in zip(matrices, split_together(matrices), strict=True):
        assert torch.allclose(u @ v, matrix, atol=1e-12)
