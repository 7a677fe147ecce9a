from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_svd.decompose import DECOMPOSITIONS, Factorization, Metrics, decompose, whiten
from edge_svd.errors import Failure, InputError

METHODS = ("svd", "fwsvd", "asvd", "svd-llm", "svd-llm-v2", "asvd-iii", "zs-svd", "io-svd")
DAMPED = ("svd-llm", "svd-llm-v2", "zs-svd", "io-svd")
NESTED = ("nsvd-i", "nsvd-ii", "nid-i", "nid-ii")


def problem(m: int, n: int, seed: int, samples: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """w and two second moments of rank min(width, samples), with scales that differ from feature to feature."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = draw(samples or 4 * n, n) * torch.exp(draw(n))
    g = draw(samples or 4 * m, m) * torch.exp(draw(m)) * 1e-3
    return draw(m, n), x.T @ x / len(x), g.T @ g / len(g)


def magnitude(c_in: torch.Tensor) -> torch.Tensor:
    """E|x| of a normal variable with that second moment."""
    return (2 / torch.pi * c_in.diagonal()).sqrt()


def made(method: str, w: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor, **parameters: float) -> Factorization:
    """That method on these metrics, E|x| and the information of rows as their diagonals say."""
    return decompose(method, **parameters)(w, Metrics(c_in, c_out, None, magnitude(c_in), c_out.diagonal()))


def undamped(method: str) -> dict[str, float]:
    return {"damping": 0.0} if method in DAMPED else {}


def loss(error: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor) -> float:
    """tr(C_out E C_in Eᵀ), element by element of its definition."""
    return float((c_out @ error @ c_in @ error.T).trace())


def metrics(method: str, c_in: torch.Tensor, c_out: torch.Tensor, damping: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The two metrics in which that method is optimal, damped, identity where it uses none."""
    eye_in, eye_out = torch.eye(len(c_in)).double(), torch.eye(len(c_out)).double()
    values, vectors = torch.linalg.eigh(c_in)
    seen = vectors[:, values > 1e-9 * values[-1]]
    damped_in = c_in + damping * c_in.diagonal().mean() * eye_in
    damped_out = c_out + damping * c_out.diagonal().mean() * eye_out
    return {
        "svd": (eye_in, eye_out),
        "fwsvd": (eye_in, c_out.diagonal().diag()),
        "asvd": (magnitude(c_in).diag(), eye_out),
        "asvd-iii": (values[-1] * seen @ seen.T, eye_out),
        "zs-svd": (damped_in, eye_out),
        "svd-llm": (damped_in, eye_out),
        "svd-llm-v2": (damped_in, eye_out),
        "io-svd": (damped_in, damped_out),
    }[method]


def check_identity(method: str, w: torch.Tensor, c_in: torch.Tensor, c_out: torch.Tensor, damping: float) -> None:
    """Loss of every truncation = sum of the energies that it drops."""
    result = made(method, w, c_in, c_out, **({"damping": damping} if method in DAMPED else {}))
    into, out = metrics(method, c_in, c_out, damping)
    if method in ("svd-llm", "zs-svd"):
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
    result = made(method, w, c_in, c_out, **undamped(method))
    if method in ("svd-llm-v2", "io-svd"):
        assert (result.energy[5:] <= 1e-12 * result.energy[0]).all()
        into, out = metrics(method, c_in, c_out, 0.0)
        assert loss(w - result.truncated(5), into, out) <= 1e-9 * loss(w, into, out)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (1, 7), (7, 1), (16, 16)])
@pytest.mark.parametrize("method", METHODS)
def test_all_components_give_the_matrix_back(method: str, shape: tuple[int, int]) -> None:
    w, c_in, c_out = problem(*shape, seed=2)
    result = made(method, w, c_in, c_out)
    m, n = shape
    assert result.b.shape == (m, min(m, n)) and result.a.shape == (min(m, n), n) and result.energy.shape == (min(m, n),)
    torch.testing.assert_close(result.truncated(min(m, n)), w, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_no_random_competitor_of_the_same_rank_is_better(method: str) -> None:
    w, c_in, c_out = problem(9, 13, seed=3)
    into, out = metrics(method, c_in, c_out, 0.0)
    result = made(method, w, c_in, c_out, **undamped(method))
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
    np.testing.assert_allclose(decompose("svd")(w, Metrics()).energy.numpy(), sigma**2, rtol=1e-10)


def test_svd_llm_damps_what_is_singular_and_says_by_how_much() -> None:
    w, c_in, _ = problem(12, 20, seed=1, samples=5)
    result, eye = decompose("svd-llm")(w, Metrics(c_in)), torch.eye(12).double()
    assert result.added == pytest.approx(1e-6 * float(c_in.diagonal().mean()), rel=1e-3)
    assert loss(w - result.truncated(5), c_in, eye) <= 1e-5 * loss(w, c_in, eye)
    assert decompose("svd-llm")(w, Metrics(problem(12, 20, seed=1)[1])).added == 0.0
    noisy = c_in - 1e-3 * c_in.diagonal().mean() * torch.eye(20)  # as rounding may leave it, only more so
    assert decompose("svd-llm")(w, Metrics(noisy)).added > 0.99e-3 * float(c_in.diagonal().mean())


def test_svd_llm_is_svd_llm_v2_where_nothing_is_singular() -> None:
    w, c_in, _ = problem(10, 17, seed=6)
    one, other = decompose("svd-llm")(w, Metrics(c_in)), decompose("svd-llm-v2")(w, Metrics(c_in))
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-6, atol=0.0)
    for rank in (1, 5, 9):
        torch.testing.assert_close(one.truncated(rank), other.truncated(rank), rtol=1e-6, atol=1e-8)


def test_svd_llm_v2_agrees_with_cholesky_whitening_on_full_rank_data() -> None:
    w, c_in, c_out = problem(10, 17, seed=6)
    sigma = torch.linalg.svdvals(w @ torch.linalg.cholesky(c_in))
    torch.testing.assert_close(decompose("svd-llm-v2")(w, Metrics(c_in, c_out)).energy, sigma**2, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_io_svd_with_an_identity_output_metric_is_svd_llm_v2(shape: tuple[int, int]) -> None:
    w, c_in, _ = problem(*shape, seed=7)
    one = decompose("io-svd", damping=0.0)(w, Metrics(c_in, torch.eye(shape[0])))
    other = decompose("svd-llm-v2")(w, Metrics(c_in))
    torch.testing.assert_close(one.energy, other.energy, rtol=1e-6, atol=0.0)
    for rank in (1, 6, 11):
        torch.testing.assert_close(one.truncated(rank), other.truncated(rank), rtol=1e-6, atol=1e-8)


def test_io_svd_is_not_svd_llm_v2_on_another_output_metric() -> None:
    w, c_in, c_out = problem(12, 20, seed=8)
    one, other = decompose("io-svd")(w, Metrics(c_in, c_out)), decompose("svd-llm-v2")(w, Metrics(c_in))
    assert loss(w - one.truncated(4), c_in, c_out) < 0.8 * loss(w - other.truncated(4), c_in, c_out)


@pytest.mark.parametrize("method", METHODS)
def test_components_are_balanced(method: str) -> None:
    result = made(method, *problem(12, 20, seed=9))
    torch.testing.assert_close(result.b.abs().amax(0), result.a.abs().amax(1), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-90, 1e-20, 1e20, 1e70])
def test_scale_of_the_weights_does_not_matter(method: str, scale: float) -> None:
    w, c_in, c_out = problem(6, 9, seed=10)
    unit, scaled = (made(method, factor * w, c_in, c_out) for factor in (1.0, scale))
    torch.testing.assert_close(scaled.energy / scale / scale, unit.energy, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(scaled.truncated(3) / scale, unit.truncated(3), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["svd-llm-v2", "io-svd"])
@pytest.mark.parametrize("damping", [0.0, 1e-4])
def test_badly_scaled_features(method: str, damping: float) -> None:
    w, c_in, c_out = problem(20, 30, seed=11)
    spread = torch.logspace(-4, 4, 30, dtype=torch.float64)  # a factor 1e16 between second moments
    c_in = spread[:, None] * c_in * spread[None, :]
    result = made(method, w, c_in, c_out, damping=damping)
    into, out = metrics(method, c_in, c_out, damping)
    for rank in (0, 1, 5, 15, 20):
        left = float(result.energy[rank:].sum())
        assert loss(w - result.truncated(rank), into, out) == pytest.approx(
            left, rel=1e-3, abs=1e-8 * loss(w, into, out)
        )


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_zero_metrics_and_zero_weights(shape: tuple[int, int]) -> None:
    w, c_in, c_out = problem(*shape, seed=12)
    silent = decompose("io-svd")(w, Metrics(c_in, torch.zeros(shape[0], shape[0])))
    assert float(silent.energy.sum()) < 1e-100
    torch.testing.assert_close(silent.truncated(6), w, rtol=1e-8, atol=1e-8)
    nothing = decompose("svd-llm-v2")(w, Metrics(torch.zeros(shape[1], shape[1])))
    assert float(nothing.truncated(6).abs().max()) == 0.0 and nothing.b.shape == (shape[0], 6)
    for method in METHODS:
        zero = made(method, 0 * w, c_in, c_out)
        assert float(zero.energy.sum()) == 0.0 and float(zero.truncated(6).abs().max()) == 0.0


def test_float32_noise_below_zero_is_cut() -> None:
    w, c_in, _ = problem(12, 20, seed=13, samples=6)
    noisy = c_in.float() + 1e-8 * c_in.abs().max().float() * torch.diag(torch.randn(20, generator=torch.Generator()))
    result = decompose("svd-llm-v2")(w, Metrics(noisy))
    assert loss(w - result.truncated(6), c_in, torch.eye(12).double()) <= 1e-5 * loss(w, c_in, torch.eye(12).double())


def test_shared_whitening_changes_nothing() -> None:
    w, c_in, c_out = problem(6, 9, seed=14)
    whole = decompose("io-svd", damping=1e-3)(w, Metrics(c_in, c_out))
    shared = decompose("io-svd")(w, Metrics(whiten(c_in, 1e-3), whiten(c_out, 1e-3)))
    assert torch.equal(whole.b, shared.b) and torch.equal(whole.a, shared.a)


def test_numpy_and_half_precision_arguments() -> None:
    w, c_in, c_out = problem(6, 9, seed=15)
    result = decompose("io-svd")(w.half(), Metrics(c_in.numpy(), c_out.float()))
    assert isinstance(result, Factorization) and result.b.dtype == torch.float64
    torch.testing.assert_close(result.truncated(6), w.half().double(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["w", "c_in", "c_out"])
def test_non_finite_arguments_are_named(which: str, bad: float) -> None:
    arguments = dict(zip(("w", "c_in", "c_out"), problem(4, 5, seed=16), strict=True))
    arguments[which][1, 2] = bad
    with pytest.raises(Failure, match=rf"\b{which}\b"):
        decompose("io-svd")(arguments.pop("w"), Metrics(**arguments))


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
            decompose("io-svd")(arguments[0], Metrics(*arguments[1:]))
    with pytest.raises(InputError, match="damping"):
        decompose("io-svd:damping=-1")(w, Metrics(c_in, c_out))


def nested_parts(method: str) -> tuple[str, bool]:
    """The method of the first part, and whether the second one is an SVD."""
    return ("svd-llm" if method.endswith("-i") else "svd-llm-v2"), method.startswith("nsvd")


@pytest.mark.parametrize("samples", [0, 5])
@pytest.mark.parametrize("method", NESTED)
def test_nested_methods_fit_what_the_first_part_leaves(method: str, samples: int) -> None:
    w, c_in, c_out = problem(16, 24, seed=20, samples=samples)
    first, by_svd = nested_parts(method)
    result = made(method, w, c_in, c_out, share=0.5)
    for rank in (1, 4, 9, 15):
        head = round(0.5 * rank)
        left = w - made(first, w, c_in, c_out).truncated(head)
        error = w - result.truncated(rank)
        assert result.at(rank).b.shape == (16, rank) and result.at(rank).a.shape == (rank, 24)
        tail = torch.linalg.svdvals(left)[rank - head :].square().sum()
        if by_svd:  # Eckart and Young on the residual
            assert float(error.square().sum()) == pytest.approx(float(tail), rel=1e-6)
            continue
        assert float(error.square().sum()) <= (1 + 24 * 16) * float(tail) + 1e-9
        exact = error.norm(dim=0) <= 1e-9 * left.norm(dim=0)  # the chosen columns of the residual are met
        assert int(exact.sum()) >= rank - head
        columns = result.at(rank).b[:, head:]
        cosine = (columns / columns.norm(dim=0)).T @ (left / left.norm(dim=0))
        assert bool((cosine.amax(1) > 1 - 1e-9).all())


@pytest.mark.parametrize("method", NESTED)
def test_without_a_second_part_a_nested_method_is_its_first(method: str) -> None:
    w, c_in, c_out = problem(12, 20, seed=21)
    result, first = made(method, w, c_in, c_out, share=1.0), made(nested_parts(method)[0], w, c_in, c_out)
    for rank in (1, 6, 12):
        torch.testing.assert_close(result.truncated(rank), first.truncated(rank), rtol=1e-9, atol=1e-12)


def test_nested_methods_help_far_from_the_calibration_text() -> None:
    w, c_in, c_out = problem(32, 48, seed=22, samples=12)
    elsewhere, eye = problem(32, 48, seed=23)[1], torch.eye(32).double()
    plain, nested = (made(method, w, c_in, c_out) for method in ("svd-llm-v2", "nsvd-ii"))
    assert loss(w - nested.truncated(20), elsewhere, eye) < loss(w - plain.truncated(20), elsewhere, eye)
    assert loss(w - nested.truncated(10), c_in, eye) >= loss(w - plain.truncated(10), c_in, eye)


@pytest.mark.parametrize("method", NESTED)
def test_nested_methods_give_the_matrix_back_and_survive_zeros(method: str) -> None:
    w, c_in, c_out = problem(10, 14, seed=24)
    torch.testing.assert_close(made(method, w, c_in, c_out).truncated(10), w, rtol=1e-8, atol=1e-8)
    assert float(made(method, 0 * w, c_in, c_out).truncated(5).abs().max()) == 0.0
    flat = torch.outer(w[:, 0], w[0])  # of rank one: nothing is left for the second part
    torch.testing.assert_close(made(method, flat, c_in, c_out, share=0.5).truncated(8), flat, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
@pytest.mark.parametrize(
    ("method", "parameters", "metrics_of"),
    [
        ("asvd", {"alpha": 0.0}, lambda c_in, c_out: Metrics(magnitude=magnitude(c_in))),
        ("fwsvd", {}, lambda c_in, c_out: Metrics(fisher=torch.full((len(c_out),), 0.3))),
        ("asvd-iii", {}, lambda c_in, c_out: Metrics(c_in)),
    ],
)
def test_without_its_weights_a_method_is_svd(
    method: str, parameters: dict[str, float], metrics_of: Callable[..., Metrics], shape: tuple[int, int]
) -> None:
    w, c_in, c_out = problem(*shape, seed=25)
    one, other = decompose(method, **parameters)(w, metrics_of(c_in, c_out)), decompose("svd")(w, Metrics())
    for rank in (1, 5, 9):
        torch.testing.assert_close(one.truncated(rank), other.truncated(rank), rtol=1e-6, atol=1e-8)


def test_asvd_iii_loses_at_most_what_its_theorem_says() -> None:
    w, c_in, _ = problem(12, 20, seed=26)
    result = decompose("asvd-iii")(w, Metrics(c_in))
    for rank in range(12):
        lost = loss(w - result.truncated(rank), c_in, torch.eye(12).double())
        assert lost <= float(result.energy[rank:].sum()) * (1 + 1e-9)


def test_inputs_and_rows_that_never_matter_are_kept_finite() -> None:
    w, c_in, c_out = problem(8, 11, seed=27)
    silent = Metrics(magnitude=torch.zeros(11), fisher=torch.zeros(8))
    for method in ("asvd", "fwsvd"):
        torch.testing.assert_close(decompose(method)(w, silent).truncated(8), w, rtol=1e-8, atol=1e-8)
    some = Metrics(
        magnitude=torch.cat([torch.zeros(1), torch.ones(10)]), fisher=torch.cat([torch.zeros(1), torch.ones(7)])
    )
    for method in ("asvd", "fwsvd"):
        torch.testing.assert_close(decompose(method)(w, some).truncated(8), w, rtol=1e-6, atol=1e-6)


def test_parameters_of_methods() -> None:
    w, c_in, c_out = problem(8, 11, seed=28)
    one = decompose("asvd:alpha=0.3")(w, Metrics(magnitude=magnitude(c_in)))
    other = decompose("asvd", alpha=0.3)(w, Metrics(magnitude=magnitude(c_in)))
    assert torch.equal(one.b, other.b) and not torch.equal(one.b, made("asvd", w, c_in, c_out).b)
    for name, words in [
        ("asvd:beta=1", "no parameter 'beta'; known: alpha"),
        ("svd:alpha=1", "no parameter 'alpha'; it has none"),
        ("asvd:alpha", "'alpha' is no parameter"),
        ("asvd:alpha=x", "'alpha=x' is no parameter"),
        ("asvd:alpha=nan", "finite"),
        ("asvd:alpha=-1", "between 0 and 4"),
        ("nsvd-i:share=1.5", "between 0 and 1"),
    ]:
        with pytest.raises(InputError, match=words):
            decompose(name)
    for method, words in [("asvd", "magnitude"), ("fwsvd", "fisher"), ("nsvd-i", "moment"), ("asvd-iii", "moment")]:
        with pytest.raises(InputError, match=f"needs {words}"):
            decompose(method)(w, Metrics())
    with pytest.raises(InputError, match="magnitude has 8 entries and the matrix 11"):
        decompose("asvd")(w, Metrics(magnitude=torch.ones(8)))
    with pytest.raises(Failure, match="negative"):
        decompose("asvd")(w, Metrics(magnitude=-torch.ones(11)))


def test_registry_knows_its_methods() -> None:
    assert {*METHODS, *NESTED} == set(DECOMPOSITIONS.names)
    with pytest.raises(InputError, match=r"'nonsense'.*asvd, .*io-svd, .*svd-llm-v2"):
        decompose("nonsense")
    with pytest.raises(ValueError, match="twice"):
        DECOMPOSITIONS.register("svd")(DECOMPOSITIONS["svd"])
    assert DECOMPOSITIONS.summary("io-svd").startswith("IO-SVD")
