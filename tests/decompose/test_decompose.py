from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.decompose import DECOMPOSITIONS, Factorization, decompose, whiten
from edge_svd.errors import Failure, InputError

METHODS = ("svd", "svd-llm", "svd-llm-v2", "io-svd")


def problem(m: int, n: int, seed: int, samples: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w and two second moments of rank min(width, samples), with scales that differ from feature to feature."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(samples or 4 * n, n) * torch.exp(draw(n))
    g = draw(samples or 4 * m, m) * torch.exp(draw(m)) * 1e-3
    return draw(m, n), x.T @ x / len(x), g.T @ g / len(g)


def loss(error: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor) -> float:
    """tr(C_out E C_in Eᵀ), element by element of its definition."""
    return float((c_out @ error @ c_in @ error.T).trace())


def metrics(method: str, c_in: torch.Tensor, c_out: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The two metrics in which that method is optimal, damped, identity where it uses none."""
    eye_in, eye_out = torch.eye(len(c_in)).double(), torch.eye(len(c_out)).double()
    damped_in = c_in + damping * c_in.diagonal().mean() * eye_in
    damped_out = c_out + damping * c_out.diagonal().mean() * eye_out
    return {
        "svd": (eye_in, eye_out),
        "svd-llm": (damped_in, eye_out),
        "svd-llm-v2": (damped_in, eye_out),
        "io-svd": (damped_in, damped_out),
    }[method]


def check_identity(method: str, w: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor, damping: float) -> None:
    """Loss of every truncation = sum of the energies that it drops."""
    result = decompose(method)(w, c_in, c_out, damping=damping)
    into, out = metrics(method, c_in, c_out, damping)
    if method == "svd-llm":
        into = c_in + result.added * torch.eye(len(c_in))
        assert result.added >= damping * float(c_in.diagonal().mean())
    whole = loss(w, into, out)
    for rank in range(len(result.energy) + 1):
        measured = loss(w - result.truncated(rank), into, out)
        assert measured == pytest.approx(float(result.energy[rank:].sum()), rel=1e-6, abs=1e-9 * whole), rank
    assert (result.energy.diff() <= 1e-12 * float(result.energy[0])).all()


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 99), damping=st.sampled_from([0.0, 1e-4, 0.1]))
def test_loss_of_a_truncation_is_the_energy_it_drops(method: str, m: int, n: int, seed: int, damping: float) -> None:
    check_identity(method, *problem(m, n, seed), damping)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("method", METHODS)
def test_same_identity_on_rank_deficient_data(method: str, shape: tuple[int, int]) -> None:
    w, c_in, c_out = problem(*shape, seed=1, samples=5)
    check_identity(method, w, c_in, c_out, 0.0)
    result = decompose(method)(w, c_in, c_out, damping=0.0)
    if method in ("svd-llm-v2", "io-svd"):
        assert (result.energy[5:] <= 1e-12 * result.energy[0]).all()
        into, out = metrics(method, c_in, c_out, 0.0)
        assert loss(w - result.truncated(5), into, out) <= 1e-9 * loss(w, into, out)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 7), (7, 1), (16, 16)])
@pytest.mark.parametrize("method", METHODS)
def test_all_components_give_the_matrix_back(method: str, shape: tuple[int, int]) -> None:
    w, c_in, c_out = problem(*shape, seed=2)
    result = decompose(method)(w, c_in, c_out)
    m, n = shape
    assert result.b.shape == (m, min(m, n)) and result.a.shape == (min(m, n), n) and result.energy.shape == (min(m, n),)
    torch.testing.assert_close(result.truncated(min(m, n)), w, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_no_random_competitor_of_the_same_rank_is_better(method: str) -> None:
    w, c_in, c_out = problem(9, 13, seed=3)
    into, out = metrics(method, c_in, c_out, 0.0)
    result = decompose(method)(w, c_in, c_out, damping=0.0)
    generator = torch.Generator().manual_seed(4)
    for rank in (1, 4, 8):
        best = loss(w - result.truncated(rank), into, out)
        for step in (1e-3, 1e-1, 1.0):
            for _ in range(10):
                b = result.b[:, :rank] + step * torch.randn(9, rank, generator=generator, dtype=torch.float64)
                # the best right side for this left side, in closed form
                a = torch.linalg.solve(b.T @ out @ b, b.T @ out @ w)
                assert loss(w - b @ a, into, out) >= best * (1 - 1e-9)


def test_svd_agrees_with_numpy() -> None:
    w = problem(10, 17, seed=5)[0]
    sigma = np.linalg.svd(w.numpy(), compute_uv=False)
    np.testing.assert_allclose(decompose("svd")(w, None, None).energy.numpy(), sigma**2, rtol=1e-10)


def test_svd_llm_damps_what_is_singular_and_says_by_how_much() -> None:
    w, c_in, _ = problem(12, 20, seed=1, samples=5)
    result, eye = decompose("svd-llm")(w, c_in, None), torch.eye(12).double()
    assert result.added == pytest.approx(1e-6 * float(c_in.diagonal().mean()), rel=1e-3)
    assert loss(w - result.truncated(5), c_in, eye) <= 1e-5 * loss(w, c_in, eye)
    assert decompose("svd-llm")(w, problem(12, 20, seed=1)[1], None).added == 0.0
    noisy = c_in - 1e-3 * c_in.diagonal().mean() * torch.eye(20)  # as rounding may leave it, only more so
    assert decompose("svd-llm")(w, noisy, None).added > 0.99e-3 * float(c_in.diagonal().mean())


def test_svd_llm_is_svd_llm_v2_where_nothing_is_singular() -> None:
    w, c_in, _ = problem(10, 17, seed=6)
    one, other = decompose("svd-llm")(w, c_in, None), decompose("svd-llm-v2")(w, c_in, None)
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-6, atol=0.0)
    for rank in (1, 5, 9):
        torch.testing.assert_close(one.truncated(rank), other.truncated(rank), rtol=1e-6, atol=1e-8)


def test_svd_llm_v2_agrees_with_cholesky_whitening_on_full_rank_data() -> None:
    w, c_in, c_out = problem(10, 17, seed=6)
    sigma = torch.linalg.svdvals(w @ torch.linalg.cholesky(c_in))
    torch.testing.assert_close(decompose("svd-llm-v2")(w, c_in, c_out).energy, sigma**2, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_io_svd_with_an_identity_output_metric_is_svd_llm_v2(shape: tuple[int, int]) -> None:
    w, c_in, _ = problem(*shape, seed=7)
    one = decompose("io-svd")(w, c_in, torch.eye(shape[0]), damping=0.0)
    other = decompose("svd-llm-v2")(w, c_in, None)
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-6, atol=0.0)
    for rank in (1, 6, 11):
        torch.testing.assert_close(one.truncated(rank), other.truncated(rank), rtol=1e-6, atol=1e-8)


def test_io_svd_is_not_svd_llm_v2_on_another_output_metric() -> None:
    w, c_in, c_out = problem(12, 20, seed=8)
    one, other = decompose("io-svd")(w, c_in, c_out), decompose("svd-llm-v2")(w, c_in, None)
    assert loss(w - one.truncated(4), c_in, c_out) < 0.8 * loss(w - other.truncated(4), c_in, c_out)


@pytest.mark.parametrize("method", METHODS)
def test_components_are_balanced(method: str) -> None:
    result = decompose(method)(*problem(12, 20, seed=9))
    torch.testing.assert_close(result.b.abs().amax(0), result.a.abs().amax(1), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-90, 1e-20, 1e20, 1e70])
def test_scale_of_the_weights_does_not_matter(method: str, scale: float) -> None:
    w, c_in, c_out = problem(6, 9, seed=10)
    unit, scaled = (decompose(method)(factor * w, c_in, c_out) for factor in (1.0, scale))
    torch.testing.assert_close(scaled.energy / scale / scale, unit.energy, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(scaled.truncated(3) / scale, unit.truncated(3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["svd-llm-v2", "io-svd"])
@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_badly_scaled_features(method: str, damping: float) -> None:
    w, c_in, c_out = problem(20, 30, seed=11)
    spread = torch.logspace(-4, 4, 30, dtype=torch.float64)  # a factor 1e16 between second moments
    c_in = spread[:, None] * c_in * spread[None, :]
    result = decompose(method)(w, c_in, c_out, damping=damping)
    into, out = metrics(method, c_in, c_out, damping)
    for rank in (0, 1, 5, 15, 20):
        left = float(result.energy[rank:].sum())
        assert loss(w - result.truncated(rank), into, out) == pytest.approx(
            left, rel=1e-3, abs=1e-8 * loss(w, into, out)
        )


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_zero_metrics_and_zero_weights(shape: tuple[int, int]) -> None:
    w, c_in, c_out = problem(*shape, seed=12)
    silent = decompose("io-svd")(w, c_in, torch.zeros(shape[0], shape[0]))
    assert float(silent.energy.sum()) < 1e-100
    torch.testing.assert_close(silent.truncated(6), w, rtol=1e-8, atol=1e-8)
    nothing = decompose("svd-llm-v2")(w, torch.zeros(shape[1], shape[1]), None)
    assert float(nothing.truncated(6).abs().max()) == 0.0 and nothing.b.shape == (shape[0], 6)
    for method in METHODS:
        zero = decompose(method)(0 * w, c_in, c_out)
        assert float(zero.energy.sum()) == 0.0 and float(zero.truncated(6).abs().max()) == 0.0


def test_float32_noise_below_zero_is_cut() -> None:
    w, c_in, _ = problem(12, 20, seed=13, samples=6)
    noisy = c_in.float() + 1e-8 * c_in.abs().max().float() * torch.diag(torch.randn(20, generator=torch.Generator()))
    result = decompose("svd-llm-v2")(w, noisy, None)
    assert loss(w - result.truncated(6), c_in, torch.eye(12).double()) <= 1e-5 * loss(w, c_in, torch.eye(12).double())


def test_shared_whitening_changes_nothing() -> None:
    w, c_in, c_out = problem(6, 9, seed=14)
    whole = decompose("io-svd")(w, c_in, c_out, damping=1e-3)
    shared = decompose("io-svd")(w, whiten(c_in, 1e-3), whiten(c_out, 1e-3))
    assert torch.equal(whole.b, shared.b) and torch.equal(whole.a, shared.a)


def test_numpy_and_half_precision_arguments() -> None:
    w, c_in, c_out = problem(6, 9, seed=15)
    result = decompose("io-svd")(w.half(), c_in.numpy(), c_out.float())
    assert isinstance(result, Factorization) and result.b.dtype == torch.float64
    torch.testing.assert_close(result.truncated(6), w.half().double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["w", "c_in", "c_out"])
def test_non_finite_arguments_are_named(which: str, bad: float) -> None:
    arguments = dict(zip(("w", "c_in", "c_out"), problem(4, 5, seed=16), strict=True))
    arguments[which][1, 2] = bad
    with pytest.raises(Failure, match=rf"\b{which}\b"):
        decompose("io-svd")(**arguments)


def test_arguments_that_do_not_fit_are_refused() -> None:
    w, c_in, c_out = problem(4, 5, seed=17)
    for arguments, words in [
        ((w, c_out, c_out), "c_in"),
        ((w, c_in, c_in), "c_out"),
        ((w, None, c_out), "needs c_in"),
        ((w, c_in, None), "needs c_out"),
        ((w, w, c_out), "square"),
        ((w[0], c_in, c_out), "matrix"),
    ]:
        with pytest.raises(InputError, match=words):
            decompose("io-svd")(*arguments)
    with pytest.raises(InputError, match="damping"):
        decompose("io-svd")(w, c_in, c_out, damping=-1.0)


def test_registry_knows_its_methods() -> None:
    assert set(METHODS) <= set(DECOMPOSITIONS.names)
    with pytest.raises(InputError, match=r"'nonsense'.*io-svd, svd, svd-llm, svd-llm-v2"):
        decompose("nonsense")
    with pytest.raises(ValueError, match="twice"):
        DECOMPOSITIONS.register("svd")(decompose("svd"))
    assert DECOMPOSITIONS.summary("io-svd").startswith("IO-SVD")
