from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tiny_folder import tiny_folder, tiny_text

from edge_svd.architectures import sites_of
from edge_svd.calibrate.collect import inner_sites
from edge_svd.distillation import pull_towards
from edge_svd.errors import Failure, InputError
from edge_svd.factored import Factors, factored
from edge_svd.heal import Patient, heal, healing
from edge_svd.models import open_model
from edge_svd.planner.held_out import HeldOutKl


def silent(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def patient(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Patient:
    opened = open_model(str(tiny_folder(tmp_path_factory.mktemp("model") / "tiny", request.param)))
    ids = torch.tensor(opened.tokenizer(tiny_text(), add_special_tokens=False).input_ids)
    return Patient(opened.model, opened.architecture, ids[: 10 * 32].reshape(10, 32))


def halves(patient: Patient) -> dict[str, Factors]:
    """Every matrix by plain SVD at a third of its rank."""
    found = {}
    for site in inner_sites(sites_of(patient.architecture)):
        u, s, v = torch.linalg.svd(patient.model.get_submodule(site.name).weight.detach(), full_matrices=False)
        k = len(s) // 3
        found[site.name] = ((u[:, :k] * s[:k]).contiguous(), v[:k].contiguous())
    return found


def passed(model: Any, names: list[str], ids: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What goes into modules and what comes out without their biases, [tokens, …] float64."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, output: torch.Tensor) -> None:
            y = output if module.bias is None else output - module.bias
            found[name] = arguments[0].flatten(0, -2).double(), y.flatten(0, -2).double()

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("mend", [0.0, 0.25, 1.0])
def test_refit_solves_the_least_squares_of_what_reaches_every_matrix(patient: Patient, mend: float) -> None:
    """Of the finished model: no other B of a matrix brings it nearer to what it is to give."""
    factors = halves(patient)
    made = healing(f"refit:windows=8,mend={mend},damping=1e-9")[0][1](patient, factors, silent)
    ids, names = patient.windows[:8], list(factors)
    dense = passed(patient.model, names, ids)
    with factored(patient.model, made):
        reached = passed(patient.model, names, ids)
    for name, (b, a) in made.items():
        x = reached[name][0]
        z, own = x @ a.double().T, x @ patient.model.get_submodule(name).weight.detach().double().T
        wanted = own + mend * (dense[name][1] - own)
        best = torch.linalg.lstsq(z, wanted).solution
        least = float((wanted - z @ best).square().sum())
        assert float((wanted - z @ b.double().T).square().sum()) == pytest.approx(least, rel=1e-3, abs=1e-9)
        assert torch.equal(a, factors[name][1])


def test_what_no_token_takes_keeps_its_b(patient: Patient) -> None:
    factors = halves(patient)
    name = next(iter(factors))
    b, a = factors[name]
    a = torch.cat([a, torch.zeros(1, a.shape[1])])
    b = torch.cat([b, torch.full((b.shape[0], 1), 3.0)], 1)
    made = healing("refit")[0][1](patient, factors | {name: (b, a)}, silent)
    assert torch.allclose(made[name][0][:, -1], b[:, -1], atol=1e-5)


def test_matrices_that_stay_whole_stay(patient: Patient) -> None:
    some = dict(list(halves(patient).items())[::2])
    before = {name: parameter.clone() for name, parameter in patient.model.named_parameters()}
    for name in ("refit", "distil:steps=2"):
        made = healing(name)[0][1](patient, some, silent)
        assert made.keys() == some.keys()
    assert all(torch.equal(parameter, before[name]) for name, parameter in patient.model.named_parameters())


def test_the_slope_of_distillation_is_that_of_the_divergence(patient: Patient) -> None:
    model, ids = patient.model, patient.windows[:1]
    body = model.get_submodule(patient.architecture.layout.body)
    with torch.no_grad():
        target = body(input_ids=ids, use_cache=False).last_hidden_state[0]
    hidden = (target + 0.3 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))).requires_grad_(True)
    p = torch.log_softmax(model.lm_head(target), -1)
    q = torch.log_softmax(model.lm_head(hidden), -1)
    (p.exp() * (p - q)).sum(-1).mean().backward()
    pull = pull_towards(model, model, target, hidden.detach(), patient.architecture, "float32")
    assert torch.allclose(pull, hidden.grad, atol=1e-6)


def test_healing_helps_and_says_what_it_cost(patient: Patient) -> None:
    factors = halves(patient)
    meter = HeldOutKl(patient.model, patient.windows[8:], patient.architecture)
    way = "distil:steps=20,rate=1e-3+refit:windows=8"
    found = heal(way, patient, factors, meter, silent)
    distil, refit = found.steps
    assert [distil["step"], refit["step"]] == way.split("+")
    assert distil["kept"] and distil["kl_after"] < distil["kl_before"] and distil["seconds"] >= 0
    assert refit["kl_before"] == distil["kl_after"]
    with factored(patient.model, found.factors):
        assert meter.measure() == pytest.approx(min(refit["kl_before"], refit["kl_after"]), rel=1e-6)
    assert same(heal(way, patient, factors, meter, silent).factors, found.factors)


def same(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> bool:
    return all(torch.equal(x, y) for name in one for x, y in zip(one[name], other[name], strict=True))


def test_what_does_not_help_is_not_kept(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = halves(patient)
    meter = HeldOutKl(patient.model, patient.windows[8:], patient.architecture)

    def doubled(_: Any, found: Mapping[str, Factors], __: Any) -> dict[str, Factors]:
        return {name: (9 * b, a) for name, (b, a) in found.items()}

    def infinite(_: Any, found: Mapping[str, Factors], __: Any) -> dict[str, Factors]:
        return {name: (b / 0, a) for name, (b, a) in found.items()}

    monkeypatch.setattr("edge_svd.heal.steps.healing", lambda text: [("doubled", doubled)])
    made = heal("doubled", patient, factors, meter, silent)
    assert not made.steps[0]["kept"] and same(made.factors, factors)
    monkeypatch.setattr("edge_svd.heal.steps.healing", lambda text: [("infinite", infinite)])
    with pytest.raises(Failure, match="Healing by infinite gave NaN or Inf"):
        heal("infinite", patient, factors, meter, silent)


def test_bad_names() -> None:
    assert healing("none") == []
    for bad, words in [
        ("nonsense", "Unknown way of healing 'nonsense'; known: distil, refit"),
        ("refit+", "names no way of healing"),
        ("none+refit", "Unknown way of healing 'none'"),
        ("refit:steps=3", "has no parameter 'steps'; known: windows, mend, damping"),
        ("distil:steps=0", "steps of distil must be between 1"),
        ("distil:rate=x", "is no parameter of distil"),
    ]:
        with pytest.raises(InputError, match=words):
            healing(bad)


def test_dense_states_are_those_of_the_dense_model_and_computed_once(patient: Patient) -> None:
    with torch.no_grad():
        whole = patient.model.get_submodule(patient.architecture.layout.body)(
            input_ids=patient.windows
        ).last_hidden_state
    assert torch.allclose(patient.dense_states(3), whole[3], atol=1e-5)
    assert patient.dense_states(3) is patient.dense_states(3)
