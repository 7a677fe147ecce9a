"""What the terminal and the page show of a comparison, of a compare.json made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from page_checker import Checker

from edge_svd.report.compare_charts import AXES, text_chart
from edge_svd.report.compare_page import compare_page
from edge_svd.report.compare_table import compare_table

SITES = [f"model.layers.{layer}.mlp.{name}" for layer in range(2) for name in ("up", "down")]
STEPS = [
    {"step": "refit", "seconds": 3.21, "kl_before": 0.5, "kl_after": 0.25, "kept": True},
    {"step": "distil:steps=9", "seconds": 12.0, "kl_before": 0.25, "kl_after": 0.3, "kept": False},
]


def choice(
    method: str,
    heal: str = "none",
    ratio: float | None = None,
    size: int | None = None,
    target: float | None = None,
    factors: str = "plain",
) -> dict[str, Any]:
    found = {"method": method, "allocation": "uniform", "ratio": ratio, "size": size, "target": target, "heal": heal}
    found["factors"] = None if size else factors
    ranks = {name: 8 if i % 2 else None for i, name in enumerate(SITES)}
    healing = [] if heal == "none" else STEPS
    return found | {
        "parameters": 5000,
        "bytes": size - 77 if size else 10_000,
        "ranks": ranks,
        "seconds": 1.0,
        "healing": healing,
    }


def found(*choices: dict[str, Any], tasks: bool = False) -> dict[str, Any]:
    rows, scores = [], []
    score = {"task": "quiz", "acc": 0.5, "acc_stderr": 0.031, "acc_norm": 0.25, "acc_norm_stderr": None, "n": 9}
    for i, made in enumerate(choices):
        for text in ("alpha", "<beta>"):
            rows.append(made | {"text": text, "perplexity": 20.0 + i, "kl": 0.1 * i, "over_dense": 2.0 + i})
        scores.append(made | score)
    nobody = {"method": "dense", "allocation": None, "ratio": None, "size": None, "target": None, "heal": None}
    nobody["factors"] = None
    sized = any(made["size"] for made in choices)
    return {
        "model": {"name": "some/model", "digest": "0", "parameters": 9000},
        "matrices": [{"name": n, "type": n[-2:], "layer": i // 2, "shape": [32, 64]} for i, n in enumerate(SITES)],
        "window": 32,
        "windows": 3,
        "candidates": ["low-rank", "int8"] if sized else [],
        "texts": [{"name": name, "dense_perplexity": 10.0} for name in ("alpha", "<beta>")],
        "rows": rows,
        "tasks": [nobody | score, *scores] if tasks else [],
        "choices": list(choices),
    }


RATIOS = found(
    choice("svd", ratio=0.5), choice("svd", ratio=0.8), choice("svd-llm", ratio=0.5), choice("svd-llm", ratio=0.8)
)
SIZES = found(choice("svd", size=90_000_000), choice("svd", size=110_000_000), tasks=True)
HEALED = found(choice("svd", ratio=0.5), choice("svd", "refit+distil:steps=9", ratio=0.5))
TARGETS = found(choice("svd", target=1.2), choice("svd", target=1.5), tasks=True)
PIVOTED = found(choice("svd", ratio=0.5), choice("svd", ratio=0.5, factors="pivoted"), tasks=True)
BOTH = found(choice("svd", ratio=0.5), choice("svd", size=90_000_000), tasks=True)


@pytest.mark.parametrize("content", [RATIOS, SIZES, HEALED, BOTH, TARGETS, PIVOTED, BOTH | {"rows": [], "texts": []}])
def test_the_page_is_well_formed(content: dict[str, Any]) -> None:
    page, checker = compare_page(content), Checker()
    checker.feed(page)
    assert checker.sound
    assert "<beta>" not in page and "http" not in page.replace("http-equiv", "")


def test_sections_are_there_for_what_there_is() -> None:
    for content, there, missing in [
        (RATIOS, ["parameters kept", ">ratio<"], [", MB", ">size<", ">target<", "h-tasks", "h-healing", ">heal<"]),
        (SIZES, [", MB", ">size<", "h-tasks", "90.0 MB", "110.00 MB"], ["parameters kept", ">ratio<"]),
        (HEALED, ["h-healing", ">heal<", "distil:steps=9", "0.2500"], ["h-tasks", ">size<"]),
        (TARGETS, [">target<", "≤ 1.2x", "5,000"], [">ratio<", ">size<", "parameters kept"]),
        (PIVOTED, [">factors<", ">pivoted<", "k² numbers fewer", "38% of its parameters", "34% of its parameters"], []),
        (BOTH, [", parameters kept", ", MB", ">ratio<", ">size<", "h-tasks"], ["h-healing", ">factors<"]),
    ]:
        page = compare_page(content)
        assert [words for words in there if words not in page] == []
        assert [words for words in missing if words in page] == []


def test_a_chart_for_every_axis_that_has_rows() -> None:
    by_ratio, by_size = AXES
    assert text_chart(RATIOS, "alpha", by_size) is None and text_chart(SIZES, "alpha", by_ratio) is None
    chart = text_chart(SIZES, "alpha", by_size)
    assert chart is not None and [mark.x for mark in chart.series[0].marks] == [89.999923, 109.999923]
    chart = text_chart(HEALED, "alpha", by_ratio)
    assert chart is not None
    assert [series.name for series in chart.series] == ["svd, uniform", "svd, uniform, refit+distil:steps=9"]


def test_every_healing_has_a_line_of_its_own() -> None:
    page = compare_page(HEALED)
    assert "20.00" in page and "21.00" in page
    lines = compare_table(HEALED).splitlines()
    assert lines[0].split() == ["method", "allocation", "heal", "alpha", "0.5", "<beta>", "0.5"]
    assert lines[1].split() == ["dense", "10.00", "10.00"]
    assert lines[2].split()[:4] == ["svd", "uniform", "none", "20.00"]
    assert lines[3].split()[:4] == ["svd", "uniform", "refit+distil:steps=9", "21.00"]
    assert lines[-2].endswith("0.5: refit 3.2 s, KL 0.5000 → 0.2500")
    assert lines[-1].endswith("0.5: distil:steps=9 12.0 s, KL 0.2500 → 0.3000, not kept")


def test_pivoted_factors_have_a_line_of_their_own() -> None:
    lines = compare_table(PIVOTED).splitlines()
    assert lines[0].split() == ["method", "allocation", "factors", "alpha", "0.5", "<beta>", "0.5"]
    assert lines[2].split()[:4] == ["svd", "uniform", "plain", "20.00"]
    assert lines[3].split()[:4] == ["svd", "uniform", "pivoted", "21.00"]
    chart = text_chart(PIVOTED, "alpha", AXES[0])
    assert chart is not None and [of.name for of in chart.series] == ["svd, uniform", "svd, uniform, pivoted"]


def test_the_table_has_a_column_for_every_ratio_and_size() -> None:
    lines = compare_table(BOTH).splitlines()
    assert "alpha 0.5" in lines[0] and "alpha 90.0 MB" in lines[0] and "heal" not in lines[0]
    assert len([line for line in lines if line.startswith("svd ")]) == 2
    quiz = next(line for line in lines if "quiz 90.0 MB" in line)
    assert lines[lines.index(quiz) + 1].split() == ["dense", *["50.0", "±", "3.1", "(25.0)"] * 2]
    assert lines[-1].endswith("9 items of quiz")


def test_the_table_says_how_much_a_target_takes() -> None:
    lines = compare_table(TARGETS).splitlines()
    assert "alpha ≤ 1.2x" in lines[0] and "<beta> ≤ 1.5x" in lines[0]
    assert lines[2].split() == [
        "svd",
        "uniform",
        *["20.00", "(0.000)", "55.6%"] * 2,
        *["21.00", "(0.100)", "55.6%"] * 2,
    ]
    assert any("held-out calibration text" in line for line in lines)
    assert not any("at a ratio" in line for line in lines)
