"""Second moments against plain loops, resuming, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from edge_svd.architectures import architecture_of, sites_of
from edge_svd.calibrate import run
from edge_svd.calibrate.collect import Estimator, Moments, add_gradients, add_window, inner_sites
from edge_svd.calibrate.run import calibrate, split, statistics_key
from edge_svd.calibrate.statistics import Statistics
from edge_svd.errors import Failure, InputError

VOCABULARY = 23


def tiny(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
        "initializer_range": 0.4,
    }
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(settings | changes))).eval()
    return model.requires_grad_(False)


def ids_of(count: int, window: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(3).integers(0, VOCABULARY, (count, window)))


def loop_metric(model: Any, ids: torch.Tensor, name: str) -> torch.Tensor:
    """Σ over positions t of Σ_k p_k g_tk g_tkᵀ, g_tk the gradient at y of log p_k(t); every position of y counts.

    Positions interact through attention: C_out sums g gᵀ over the positions of y for each predicting position and
    token.
    """
    store: dict[str, torch.Tensor] = {}

    def keep(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        store["y"] = output.detach().requires_grad_(True)
        return store["y"]

    handle = model.get_submodule(name).register_forward_hook(keep)
    with torch.enable_grad():
        logp = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0], -1)
    handle.remove()
    width = store["y"].shape[-1]
    total = torch.zeros(width, width)
    for t in range(len(ids)):
        for token in range(VOCABULARY):
            (g,) = torch.autograd.grad(logp[t, token], store["y"], retain_graph=True)
            total += logp[t, token].exp().detach() * g[0].T @ g[0]
    return total


def moments_of(model: Any, windows: torch.Tensor, estimator: Estimator, seeds: int = 1) -> Moments:
    architecture = architecture_of(model.config)
    moments = Moments(sites_of(architecture))
    for seed in range(seeds):
        for ids in windows:
            add_window(model, architecture, moments, ids, estimator, torch.Generator().manual_seed(seed))
    return moments


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.gate_proj", "model.layers.1.self_attn.o_proj"]
)
@pytest.mark.parametrize(
    "estimator", [Estimator("top-k", k=VOCABULARY), Estimator("sampled", samples=2)], ids=lambda e: e.kind
)
def test_output_metric_matches_the_loop_over_positions(name: str, estimator: Estimator) -> None:
    """Both estimators are unbiased: their average over many draws approaches the loop but for sampling noise."""
    model, ids = tiny(), ids_of(1)
    draws = 30 if estimator.kind == "top-k" else 250
    found = moments_of(model, ids, estimator, draws).outputs[name].full(torch.float32) / draws
    expected = loop_metric(model, ids[0], name)
    assert float((found - expected).norm() / expected.norm()) < 0.2
    assert float(found.trace() / expected.trace()) == pytest.approx(1.0, abs=0.1)


def test_top_k_is_exact_where_positions_cannot_interact() -> None:
    """The last layer's down projection reaches its own position only: no signs, no sampling noise remain."""
    model, ids = tiny(), ids_of(1)
    name = "model.layers.1.mlp.down_proj"
    found = moments_of(model, ids, Estimator("top-k", k=VOCABULARY)).outputs[name].full(torch.float32)
    torch.testing.assert_close(found, loop_metric(model, ids[0], name), rtol=1e-3, atol=1e-5)


def test_inputs_are_shared_and_weighted() -> None:
    model, windows = tiny(), ids_of(2)
    seen: dict[str, list[torch.Tensor]] = {}
    handle = model.get_submodule("model.layers.1.self_attn.q_proj").register_forward_pre_hook(
        lambda _, x: seen.setdefault("x", []).append(x[0][0].detach())
    )
    plain = moments_of(model, windows, Estimator(weighted=False))
    handle.remove()
    x = torch.cat(seen["x"])
    key = "model.layers.1.attention"
    torch.testing.assert_close(plain.inputs[key].full(torch.float32), x.T @ x, rtol=1e-4, atol=1e-5)
    assert plain.inputs[key].total == len(x)
    weighted = moments_of(model, windows, Estimator())
    powers = sum(
        float(weighted.outputs[f"model.layers.1.self_attn.{part}_proj"].full().trace()) for part in ("q", "k", "v")
    )
    assert weighted.inputs[key].total == pytest.approx(powers, rel=1e-4)
    assert len([name for name in weighted.inputs if ".1." in name]) == 4


def test_head_variance_and_frequency() -> None:
    model, windows = tiny(), ids_of(2)
    moments = moments_of(model, windows, Estimator())
    p = torch.softmax(model(input_ids=windows).logits.flatten(0, 1), -1)
    torch.testing.assert_close(moments.head_variance.float(), (p * (1 - p)).sum(0), rtol=1e-4, atol=1e-5)
    assert moments.frequency.sum() == windows.numel() and moments.tokens == windows.numel()


def test_gradients_match_autograd() -> None:
    model, windows = tiny(), ids_of(1)
    architecture = architecture_of(model.config)
    sites = sites_of(architecture)
    found = {site.name: torch.zeros(site.shape) for site in inner_sites(sites)}
    add_gradients(model, architecture, sites, lambda site, slope: found[site.name].add_(slope), windows[0])
    model.requires_grad_(True)
    logits = model(input_ids=windows).logits[0]
    torch.nn.functional.cross_entropy(logits[:-1], windows[0, 1:], reduction="sum").backward()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_submodule(name).weight.grad, rtol=1e-4, atol=1e-5)


def key_of(model: Any, windows: torch.Tensor, **changes: Any) -> dict[str, Any]:
    return statistics_key("m", "t", "s", (windows.shape[0], windows.shape[1]), 0, Estimator()) | changes


def test_interrupted_run_resumes_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = tiny(), ids_of(9)
    architecture = architecture_of(model.config)
    monkeypatch.setattr(run, "SAVE_EVERY", 3)
    whole = calibrate(model, architecture, windows, key_of(model, windows), tmp_path / "whole", Estimator())

    class Stop(Exception):
        pass

    def stop_at(limit: int) -> Any:
        def tick(done: int, total: int) -> None:
            if done == limit:
                raise Stop

        return tick

    for limit in (5, 7):
        with pytest.raises(Stop):
            calibrate(
                model, architecture, windows, key_of(model, windows), tmp_path / "cut", Estimator(), stop_at(limit)
            )
    assert (tmp_path / "cut" / run.PARTIAL).exists()
    starts: list[int] = []
    calibrate(
        model,
        architecture,
        windows,
        key_of(model, windows),
        tmp_path / "cut",
        Estimator(),
        lambda d, t: starts.append(d),
    )
    assert starts[0] >= 6
    assert not (tmp_path / "cut" / run.PARTIAL).exists()
    files = sorted(file.relative_to(whole.path) for file in whole.path.rglob("*") if file.is_file())
    assert len(files) > 6
    for file in files:
        assert (tmp_path / "cut" / file).read_bytes() == (whole.path / file).read_bytes()


@pytest.mark.parametrize("field", ["model", "tokenizer", "source", "seed", "window", "windows", "estimator"])
def test_statistics_are_never_reused_for_other_inputs(tmp_path: Path, field: str) -> None:
    model, windows = tiny(), ids_of(2)
    architecture = architecture_of(model.config)
    key = key_of(model, windows)
    calibrate(model, architecture, windows, key, tmp_path / "s", Estimator())
    other = key | {field: "other" if isinstance(key[field], (str, dict)) else 99}
    with pytest.raises(InputError, match="another model, text or setting"):
        calibrate(model, architecture, windows, other, tmp_path / "s", Estimator())
    with pytest.raises(InputError, match="another model or tokenizer"):
        Statistics.open(tmp_path / "s").require_model("m", "other")


@pytest.mark.parametrize("site", ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"])
def test_nan_stops_with_the_site_name(tmp_path: Path, site: str) -> None:
    model, windows = tiny(), ids_of(1)
    model.get_submodule(site).register_forward_pre_hook(lambda _, x: (x[0] * float("nan"),), prepend=True)
    with pytest.raises(Failure, match=site):
        calibrate(model, architecture_of(model.config), windows, key_of(model, windows), tmp_path / "s", Estimator())


def test_split_is_disjoint() -> None:
    for count in (1, 2, 7, 8, 9, 128):
        measured, held = split(count)
        assert measured and held
        assert count == 1 or not set(measured) & set(held)
        assert sorted({*measured, *held}) == list(range(count))


def test_slim_graph_changes_little() -> None:
    """Activations kept in bfloat16 move gradients by their rounding only."""
    model, ids = tiny(hidden_size=32, intermediate_size=64, num_attention_heads=4), ids_of(1, 40)[0]
    from edge_svd.calibrate.collect import last_hidden, slim_graph

    found = []
    for smallest in (1, 10**9):
        gradients: list[torch.Tensor] = []
        with slim_graph(smallest):
            hidden = last_hidden(model, ids, "model.embed_tokens", gradients.append)
        hidden.backward(torch.ones_like(hidden))
        found.append(gradients[0])
    assert 0 < float((found[0] - found[1]).norm() / found[1].norm()) < 5e-2


def test_first_order_scores_come_when_they_are_asked_for(tmp_path: Path) -> None:
    model, windows = tiny(), ids_of(3)
    architecture, key = architecture_of(model.config), key_of(model, windows)
    site = next(site for site in sites_of(architecture) if site.type == "up")
    lean = calibrate(model, architecture, windows, key, tmp_path / "s", Estimator(), extras=())
    with pytest.raises(InputError, match="hold no gradients"):
        lean.gradient(site)
    before = lean.c_out(site)
    added = calibrate(model, architecture, windows, key, tmp_path / "s", Estimator())
    whole = calibrate(model, architecture, windows, key, tmp_path / "whole", Estimator())
    assert torch.equal(added.gradient(site), whole.gradient(site)) and bool(whole.gradient(site).any())
    assert torch.equal(added.c_out(site), before) and torch.equal(whole.c_out(site), before)
    assert torch.equal(added.moment(site), whole.moment(site)) and torch.equal(added.fisher(site), whole.fisher(site))
    with pytest.raises(InputError, match=r"Unknown.*'nonsense'.*activations, gradients, fisher"):
        calibrate(model, architecture, windows, key, tmp_path / "s", Estimator(), extras=("nonsense",))


def test_plain_moments_sizes_and_fisher_rows_against_a_loop(tmp_path: Path) -> None:
    """Inputs of all tokens alike, and a window's squared slopes, one window after the other."""
    model, windows = tiny(), ids_of(9)
    architecture, key = architecture_of(model.config), key_of(model, windows)
    statistics = calibrate(
        model, architecture, windows, key, tmp_path / "s", Estimator(), extras=("activations", "fisher")
    )
    assert not statistics.has("gradients")
    measured, held = split(len(windows))
    for site in inner_sites(sites_of(architecture)):
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(site.name).register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0][0]))
        with torch.no_grad():
            for row in measured:
                model(input_ids=windows[row : row + 1])
        handle.remove()
        x = torch.cat(seen).double()
        torch.testing.assert_close(statistics.moment(site), x.T @ x / len(x), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(statistics.magnitude(site), x.abs().mean(0), rtol=1e-4, atol=1e-6)
    model.requires_grad_(True)
    rows: dict[str, torch.Tensor] = {}
    for row in held:
        model.zero_grad()
        logits = model(input_ids=windows[row : row + 1]).logits[0]
        torch.nn.functional.cross_entropy(logits[:-1], windows[row, 1:], reduction="sum").backward()
        for site in inner_sites(sites_of(architecture)):
            square = model.get_submodule(site.name).weight.grad.double().square().sum(1) / len(held)
            rows[site.name] = rows.get(site.name, 0) + square
    for site in inner_sites(sites_of(architecture)):
        torch.testing.assert_close(statistics.fisher(site), rows[site.name], rtol=1e-3, atol=1e-9)
