from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import edge_svd

from edge_svd.calibrate.collect import Estimator, inner_sites
from edge_svd.compare.asked import Asked, Cell
from edge_svd.compare.component_changes import component_changes
from edge_svd.compare.folder import refuse_other, write_folder
from edge_svd.compare.matrices import Decomposed
from edge_svd.compare.meter import TextMeter
from edge_svd.compare.run import compare
from edge_svd.compare.sensitivity import FromLayer
from edge_svd.decompose import DECOMPOSITIONS
from edge_svd.errors import InputError
from edge_svd.files import canonical_json
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import replaced
from edge_svd.report.compare_table import compare_table
from edge_svd.steps import Calibration, estimator_of, run_calibration

SMALL = {"window": 32, "windows": 3}


def asked(text: Path, methods: str, allocations: str = "uniform", ratios: tuple[float, ...] = (0.8, 0.5)) -> Asked:
    return Asked(tuple(methods.split()), tuple(allocations.split()), ratios, (text,), **SMALL)


def test_every_method_under_every_allocation(opened: OpenedModel, statistics: Any, text: Path) -> None:
    everything = " ".join(DECOMPOSITIONS.names)
    found = compare(opened, statistics, asked(text, everything))
    more = compare(
        opened,
        statistics,
        asked(text, "io-svd nsvd-i", "uniform grouped strs zero-sum first-order second-order second-order-measured"),
    )
    total = found["model"]["parameters"]
    assert total == sum(site.shape[0] * site.shape[1] for site in inner_sites(opened.sites))
    for row in [*found["rows"], *more["rows"]]:
        assert math.isfinite(row["perplexity"]) and row["kl"] > 0
        assert 0.9 * row["ratio"] * total < row["parameters"] <= row["ratio"] * total
    kl = {(row["method"], row["ratio"]): row["kl"] for row in found["rows"]}
    assert kl["io-svd", 0.5] < kl["svd", 0.5] and kl["io-svd", 0.8] < kl["io-svd", 0.5]


def test_a_row_is_what_replacing_the_weights_by_hand_gives(opened: OpenedModel, statistics: Any, text: Path) -> None:
    found = compare(opened, statistics, asked(text, "svd", ratios=(0.5,)))
    ranks, weights = found["choices"][0]["ranks"], {}
    for site in inner_sites(opened.sites):
        w = opened.model.get_submodule(site.name).weight.detach()
        u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
        k = ranks[site.name]
        weights[site.name] = (u[:, :k] * s[:k] @ v[:k]).float()
    ids = torch.tensor(opened.tokenizer(text.read_text(), add_special_tokens=False).input_ids)
    windows = ids[: 3 * 32].reshape(3, 32)

    def log_probabilities() -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(opened.model(input_ids=windows).logits.double(), -1)[:, :-1]

    p = log_probabilities()
    with replaced(opened.model, weights):
        q = log_probabilities()
    nll = -q.gather(2, windows[:, 1:, None]).mean()
    kl = (p.exp() * (p - q)).sum(-1)[:, 3::4].mean()
    row = found["rows"][0]
    assert row["perplexity"] == pytest.approx(float(nll.exp()), rel=1e-4)
    assert row["kl"] == pytest.approx(float(kl), rel=2e-3)
    dense = -p.gather(2, windows[:, 1:, None]).mean()
    assert found["texts"][0]["dense_perplexity"] == pytest.approx(float(dense.exp()), rel=1e-4)


def test_an_interrupted_comparison_measures_nothing_twice(
    opened: OpenedModel, statistics: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, measured = asked(text, "svd svd-llm"), TextMeter.measure
    calls = 0

    def stopping(meter: TextMeter) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:  # the dense model and two rows are done
            raise KeyboardInterrupt
        return measured(meter)

    monkeypatch.setattr(TextMeter, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(opened, statistics, whole)
    monkeypatch.setattr(TextMeter, "measure", lambda meter: (kept.append(1), measured(meter))[1])
    kept: list[int] = []
    found = compare(opened, statistics, whole)
    assert len(kept) == 3 and len(found["rows"]) == 4
    again = compare(opened, statistics, whole)
    assert len(kept) == 3 and again == found


def test_rows_that_are_kept_already_are_found_again() -> None:
    """Where a row at a ratio lies must not change: rows of earlier versions took hours."""

    def digest(cell: Cell) -> str:
        return hashlib.sha256(canonical_json(cell.names)).hexdigest()[:12]

    assert digest(Cell("svd", "uniform", 0.8)) == "804417bf92e8"
    assert digest(Cell("svd", "uniform", 0.8, "refit", 128)) == "ad71368996c9"


def test_starting_over_from_a_layer_changes_nothing(opened: OpenedModel, statistics: Any) -> None:
    ids = statistics.held_out()
    decoder = FromLayer(opened.model, opened.architecture, ids)
    for site in inner_sites(opened.sites)[::3]:
        weights = {site.name: opened.model.get_submodule(site.name).weight.detach() * 0.5}
        with replaced(opened.model, weights), torch.no_grad():
            quick = decoder.perplexity(site.layer)
            q = torch.log_softmax(opened.model(input_ids=ids).logits.double(), -1)[:, :-1]
        assert quick == pytest.approx(float((-q.gather(2, ids[:, 1:, None])).mean().exp()), rel=1e-4)


@pytest.mark.parametrize("method", ["svd-llm", "svd-llm-v2"])
def test_the_loss_of_a_whitened_method_is_what_its_inputs_lose(
    method: str, opened: OpenedModel, statistics: Any, text: Path
) -> None:
    """Energies that a truncation drops against ‖(W - W') X‖² of the very activations that were whitened with."""
    from edge_svd.calibrate.run import split
    from edge_svd.calibrate.sources import parse_source
    from edge_svd.calibrate.text import windows_from

    ids = torch.from_numpy(windows_from([parse_source(str(text))], opened, window=32, count=8, seed=0).ids)
    measured, _ = split(8)
    made = Decomposed(opened, statistics, method)
    for site in inner_sites(opened.sites):
        seen: list[torch.Tensor] = []
        module = opened.model.get_submodule(site.name)
        handle = module.register_forward_pre_hook(lambda _, a, seen=seen: seen.append(a[0].flatten(0, -2)))
        with torch.no_grad():
            opened.model(input_ids=ids[measured])
        handle.remove()
        x, found = torch.cat(seen).double(), made.factorizations[site.name]
        rank = min(site.shape) // 3
        lost = ((module.weight.detach().double() - found.truncated(rank)) @ x.T).square().sum() / len(x)
        assert float(lost) == pytest.approx(float(found.energy[rank:].sum()), rel=1e-4)


def test_command_table_and_page(folder: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    options += ["--text", str(text), "--window", "32", "--windows", "2", "-o", str(out)]
    line = ["compare", str(folder), "--methods", "svd,asvd:alpha=0.3", "--ratios", "0.7,0.5", *options]
    result = edge_svd(*line)
    assert result.code == 0, result.err
    assert "asvd:alpha=0.3" in result.out and "prose 0.7" in result.out and "index.html" in result.out
    page = (out / "index.html").read_text()
    assert page.count("<svg") >= 6 and "http" not in page.replace("http-equiv", "") and "asvd:alpha=0.3" in page
    data = json.loads((out / "compare.json").read_text())
    assert len(data["rows"]) == 4 and {row["text"] for row in data["rows"]} == {"prose"}
    again = edge_svd(*line)
    assert again.code == 2 and "--force" in again.err
    forced = edge_svd(*line, "--force", "--json")
    assert forced.json["rows"] == data["rows"]


def test_first_order_changes_of_single_components(opened: OpenedModel, statistics: Any) -> None:
    """Against the derivative of a window's loss along a component, by autograd."""
    windows, made = statistics.held_out(), Decomposed(opened, statistics, "svd-llm")
    found = component_changes(opened, made.factorizations, windows, lambda done, total: None)
    for site in inner_sites(opened.sites)[::4]:
        factors, weight = made.factorizations[site.name], opened.model.get_submodule(site.name).weight
        for row, ids in enumerate(windows):
            weight.requires_grad_(True)
            with torch.enable_grad():
                q = torch.log_softmax(opened.model(input_ids=ids[None]).logits[0], -1)[:-1]
                loss = -q.gather(1, ids[1:, None]).mean()
            (gradient,) = torch.autograd.grad(loss, weight)
            weight.requires_grad_(False)
            for r in (0, 5, 20):
                change = float((gradient.double() * torch.outer(factors.b[:, r], factors.a[r])).sum())
                assert float(found[site.name][row, r]) == pytest.approx(change, rel=1e-3, abs=1e-6)


def test_fewer_tokens_than_inputs(opened: OpenedModel, text: Path, tmp_path: Path) -> None:
    """Cholesky whitening says what it had to add; methods that need nothing add nothing, and all stay finite."""
    settings = Calibration((str(text),), 2, 32, estimator=Estimator(weighted=False))
    few = run_calibration(opened, settings, tmp_path / "statistics", extras=())[0]
    assert few.tokens < min(site.shape[1] for site in inner_sites(opened.sites))
    found = compare(opened, few, asked(text, "svd-llm svd-llm-v2 io-svd", ratios=(0.6,)))
    assert all(math.isfinite(row["perplexity"]) and math.isfinite(row["kl"]) for row in found["rows"])
    added = {choice["method"]: choice["added"] for choice in found["choices"]}
    assert len(added["svd-llm"]) == len(inner_sites(opened.sites)) and min(added["svd-llm"].values()) > 0
    assert not added["svd-llm-v2"] and not added["io-svd"]
    said = [line for line in compare_table(found).splitlines() if "were damped" in line]
    assert len(said) == 1 and said[0].startswith("svd-llm: ")


def test_healed_cells(folder: Path, text: Path) -> None:
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    options += ["--text", str(text), "--window", "32", "--windows", "2"]
    ways = "none,refit:windows=4,refit:windows=4,damping=0.1+distil:steps=3,rate=1e-3"
    line = ["compare", str(folder), "--methods", "svd", "--ratios", "0.5", "--heal", ways, "--heal-windows", "16"]
    found = edge_svd(*line, *options, "--json").json
    names = [choice["heal"] for choice in found["choices"]]
    assert names == ["none", "refit:windows=4", "refit:windows=4,damping=0.1+distil:steps=3,rate=1e-3"]
    steps = [[step["step"] for step in choice["healing"]] for choice in found["choices"]]
    assert steps == [[], names[1:2], names[2].split("+")]
    kl = [row["kl"] for row in found["rows"]]
    assert len(set(kl)) == 3
    refused = edge_svd("compare", str(folder), "--methods", "svd", "--ratios", "0.5", "--heal", "bandage", *options)
    assert refused.code == 2 and "Unknown way of healing 'bandage'; known: distil, refit" in refused.err


def test_bad_input(opened: OpenedModel, statistics: Any, text: Path, tmp_path: Path) -> None:
    for bad, words in [
        (asked(text, "nonsense"), "Unknown decomposition"),
        (asked(text, "svd", "nonsense"), "Unknown allocation"),
        (asked(text, "svd", ratios=(1.5,)), "at most 1, not 1.5"),
        (asked(text, "svd", ratios=()), "no ratio, size or target"),
        (Asked(("svd",), ("uniform",), (0.5,), ()), "no text or task"),
        (asked(text, "svd", ""), "no allocation"),
        (asked(text, ""), "no method"),
        (Asked(("svd",), ("uniform",), (0.5,), (text, text)), "same name"),
        (Asked(("svd",), ("uniform",), (0.5,), (tmp_path / "none.txt",)), "none.txt"),
    ]:
        with pytest.raises(InputError, match=words):
            compare(opened, statistics, bad)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="does not hold a comparison"):
        refuse_other(tmp_path / "mine", force=True)
    for curvature in ("sampled", "top-k:0", "nonsense:3", "top-k:x"):
        with pytest.raises(InputError, match="--curvature"):
            estimator_of(curvature)
    assert estimator_of("top-k:4").k == 4 and estimator_of("sampled:3").samples == 3
    write_folder(tmp_path / "fresh", compare(opened, statistics, asked(text, "svd", ratios=(0.5,))))
    assert (tmp_path / "fresh" / "index.html").stat().st_size > 5000
