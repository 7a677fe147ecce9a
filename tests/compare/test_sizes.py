"""Comparisons at equal bytes: what is measured at a size is the folder that a plan of that size makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import edge_svd

from edge_svd.calibrate.collect import inner_sites
from edge_svd.compare.asked import Asked
from edge_svd.compare.meter import TextMeter
from edge_svd.compare.rows import Rows
from edge_svd.compare.run import compare
from edge_svd.errors import BudgetError, InputError
from edge_svd.loading import load
from edge_svd.models import OpenedModel
from edge_svd.planner import survey

SMALL = {"window": 32, "windows": 3}
SIZE, LARGER = 126_000, 150_000


def asked(text: Path, methods: str = "svd", allocations: str = "uniform", **more: Any) -> Asked:
    settings = {"ratios": (), "sizes": (SIZE,)} | SMALL | more
    return Asked(tuple(methods.split()), tuple(allocations.split()), texts=(text,), **settings)


def by_blocks(x: torch.Tensor, block: int = 32) -> torch.Tensor:
    """x with every `block` neighbours as int8 on a scale of their own."""
    parts = x.unflatten(-1, (-1, block))
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return (torch.round(parts / scale) * scale).flatten(-2)


def log_probabilities(model: Any, windows: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=windows).logits.double(), -1)[:, :-1]


@pytest.mark.parametrize("allocation", ["uniform", "second-order"])
def test_a_row_is_what_plan_and_compress_give_by_hand(
    allocation: str, folder: Path, opened: OpenedModel, statistics: Any, text: Path, tmp_path: Path
) -> None:
    found = compare(opened, statistics, asked(text, "svd-llm", allocation))
    names = ["--method", "svd-llm", "--allocation", allocation, "--candidates", "low-rank,int8"]
    stats = ["--stats", statistics.path]
    plan = edge_svd("plan", folder, *stats, "--size", str(SIZE), *names, "-o", tmp_path / "plan.json", "--json").json[
        "plan"
    ]
    made = edge_svd("compress", folder, *stats, "--plan", tmp_path / "plan.json", "-o", tmp_path / "made")
    assert made.code == 0, made.err
    ids = torch.tensor(opened.tokenizer(text.read_text(), add_special_tokens=False).input_ids)
    windows = ids[: 3 * 32].reshape(3, 32)
    shipped = load(tmp_path / "made")
    for site in opened.sites:
        if site.type != "embedding":
            block = plan["sites"][site.tied_to or site.name].get("block", 32)
            module = shipped.get_submodule(site.name)
            module.register_forward_pre_hook(lambda _, a, block=block: (by_blocks(a[0], block),))
    p, q = log_probabilities(opened.model, windows), log_probabilities(shipped, windows)
    row, choice = found["rows"][0], found["choices"][0]
    assert row["perplexity"] == pytest.approx(float((-q.gather(2, windows[:, 1:, None])).mean().exp()), rel=1e-4)
    assert row["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1)[:, 3::4].mean()), rel=2e-3)
    assert (row["ratio"], row["size"], row["bytes"]) == (None, SIZE, plan["predicted"]["file_bytes"])
    assert row["bytes"] <= SIZE and found["candidates"] == ["low-rank", "int8"]
    inner = [site.name for site in inner_sites(opened.sites)]
    ranks = {name: sum(plan["sites"][name].get(k, 0) for k in ("k4", "k8", "k16")) or None for name in inner}
    assert choice["ranks"] == ranks and any(ranks.values())


def test_ratios_and_sizes_side_by_side(opened: OpenedModel, statistics: Any, text: Path) -> None:
    found = compare(opened, statistics, asked(text, "svd io-svd", ratios=(0.5,), sizes=(LARGER, SIZE)))
    cells = [(row["method"], row["ratio"], row["size"]) for row in found["rows"]]
    assert cells == [(m, r, s) for m in ("svd", "io-svd") for r, s in ((0.5, None), (None, LARGER), (None, SIZE))]
    assert all(row["bytes"] == 2 * row["parameters"] for row in found["rows"] if row["size"] is None)
    kl = {(row["method"], row["size"]): row["kl"] for row in found["rows"]}
    assert 0 < kl["io-svd", LARGER] < kl["io-svd", SIZE] < kl["svd", SIZE]


def test_other_candidates_make_other_rows(opened: OpenedModel, statistics: Any, text: Path) -> None:
    few = compare(opened, statistics, asked(text))
    more = compare(opened, statistics, asked(text, candidates="low-rank,int8,blocks-4"))
    assert more["rows"][0]["kl"] < few["rows"][0]["kl"]
    assert compare(opened, statistics, asked(text))["rows"] == few["rows"]


def test_allocations_that_price_alike_share_a_price_list(
    opened: OpenedModel, statistics: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced, original = [], survey.price_all
    monkeypatch.setattr(survey, "price_all", lambda *a: (priced.append(1), original(*a))[1])
    found = compare(opened, statistics, asked(text, "fwsvd", "uniform grouped second-order first-order"))
    assert len(priced) == 2 and len(found["rows"]) == 4


def test_an_interrupted_comparison_plans_and_measures_nothing_twice(
    opened: OpenedModel, statistics: Any, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, measured = asked(text, sizes=(LARGER, SIZE)), TextMeter.measure
    calls: list[int] = []

    def stopping(meter: TextMeter) -> Any:
        calls.append(1)
        if len(calls) == 3:  # the dense model and one row are done
            raise KeyboardInterrupt
        return measured(meter)

    monkeypatch.setattr(TextMeter, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(opened, statistics, whole)
    found = compare(opened, statistics, whole)
    assert len(calls) == 3 + 2 and [row["size"] for row in found["rows"]] == [LARGER, SIZE]
    assert compare(opened, statistics, whole) == found and len(calls) == 5
    # Checkpoints go when their rows are measured.
    assert all(file.suffix == ".json" for file in Rows(opened, statistics).folder.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"allocations": "strs"}, "allocation strs needs perplexities .* compare it by ratio"),
        ({"allocations": "uniform zero-sum"}, "allocation zero-sum needs the signed changes"),
        ({"heals": ("none", "refit")}, "Healing by refit works on fp32 factors"),
        ({"candidates": "low-rank,nonsense"}, "Unknown candidate kind 'nonsense'"),
        ({"sizes": ()}, "no ratio, size or target"),
    ],
)
def test_refused_before_any_work(change: dict[str, Any], words: str, text: Path) -> None:
    with pytest.raises(InputError, match=words):
        asked(text, **change).check()


def test_a_size_out_of_reach(opened: OpenedModel, statistics: Any, text: Path) -> None:
    with pytest.raises(BudgetError) as refusal:
        compare(opened, statistics, asked(text, sizes=(LARGER, 20_000)))
    assert SIZE > (refusal.value.smallest or 0) > 20_000


def test_the_command(folder: Path, text: Path, tmp_path: Path) -> None:
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    options += ["--text", str(text), "--window", "32", "--windows", "2"]
    line = ["compare", str(folder), "--methods", "svd", *options]
    out = tmp_path / "out"
    result = edge_svd(*line, "--sizes", "150kB,126kB", "--ratios", "0.5", "-o", str(out))
    assert result.code == 0, result.err
    assert all(words in result.out for words in ("prose 0.5", "prose 150.0 kB", "prose 126.0 kB", "low-rank, int8"))
    page = (out / "index.html").read_text()
    assert page.count("prose, parameters kept") == 1 and page.count("prose, MB") == 1
    assert "svd, uniform, 126.0 kB" in page and "svd, uniform, ratio 0.5" in page
    assert len(json.loads((out / "compare.json").read_text())["rows"]) == 3
    edge_svd(*line, "--sizes", "20kB").refused(3, "20.00 kB")
    edge_svd(*line, "--sizes", "tiny").refused(2, "Cannot read the size 'tiny'")
    edge_svd(*line).refused(2, "no ratio, size or target")
    edge_svd(*line, "--ratios", "0.5", "--candidates", "int8").refused(2, "--candidates", "--sizes")
