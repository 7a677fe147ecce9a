"""Comparisons on tasks: every cell and the dense model are scored on the same items, and no item twice."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import edge_svd
from tiny_folder import WORDS

from edge_svd.compare import measures
from edge_svd.compare.asked import Asked
from edge_svd.compare.matrices import Decomposed
from edge_svd.compare.run import compare
from edge_svd.errors import InputError
from edge_svd.evaluate.tasks import ModelScorer, read_items, score_tasks, strided
from edge_svd.factored import factored
from edge_svd.models import OpenedModel

SIZE = 126_000


def item(i: int) -> dict[str, Any]:
    choices = [f" {WORDS[(i + k) % 12]}" for k in range(4)]
    return {"id": i, "context": f"The {WORDS[i % 12]} near the", "choices": choices, "gold": i % 4}


def write(path: Path, items: list[dict[str, Any]]) -> Path:
    content = "".join(json.dumps(item) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write(tmp_path / "words.jsonl.gz", [item(i) for i in range(24)])


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of items of every scoring from now on."""
    counts: list[int] = []
    original: Callable[..., Any] = score_tasks
    monkeypatch.setattr(measures, "score_tasks", lambda s, items: (counts.append(len(items)), original(s, items))[1])
    return counts


def asked(*tasks: Path, **more: Any) -> Asked:
    settings = {"ratios": (0.5,), "texts": (), "sizes": (SIZE,), "task_limit": 10, "window": 32, "windows": 2} | more
    return Asked(("svd",), ("uniform",), tasks=tasks, **settings)


def test_cells_and_the_dense_model_score_the_same_items(opened: OpenedModel, statistics: Any, task: Path) -> None:
    found = compare(opened, statistics, asked(task))
    assert found["rows"] == [] and found["texts"] == []
    names = [(row["method"], row["allocation"], row["ratio"], row["size"], row["heal"]) for row in found["tasks"]]
    assert names == [
        ("dense", None, None, None, None),
        ("svd", "uniform", 0.5, None, "none"),
        ("svd", "uniform", None, SIZE, "none"),
    ]
    assert {(row["task"], row["n"]) for row in found["tasks"]} == {("words", 10)}
    items, scorer = strided(read_items(task), 10), ModelScorer(opened.model, opened.tokenizer)
    made = Decomposed(opened, statistics, "svd")
    factors = made.factors(made.choose("uniform", 0.5, made.priced("uniform")))
    by_hand = [score_tasks(scorer, items).to_json()]
    with factored(opened.model, factors):
        by_hand.append(score_tasks(scorer, items).to_json())
    for row, score in zip(found["tasks"], by_hand, strict=False):
        assert {key: row[key] for key in score} == pytest.approx(score)


def test_no_item_is_scored_twice(
    opened: OpenedModel, statistics: Any, task: Path, text: Path, tmp_path: Path, scored: list[int]
) -> None:
    first = compare(opened, statistics, asked(task))
    assert scored == [10, 10, 10]
    assert compare(opened, statistics, asked(task)) == first and len(scored) == 3
    # The very items under another name.
    same = write(tmp_path / "same.jsonl", [item(i * 24 // 10) for i in range(10)])
    again = compare(opened, statistics, asked(same, texts=(text,)))
    assert len(scored) == 3 and len(again["rows"]) == 2
    assert [row["acc"] for row in again["tasks"]] == [row["acc"] for row in first["tasks"]]
    compare(opened, statistics, asked(task, task_limit=12))
    assert scored[3:] == [12, 12, 12]


def test_refused(opened: OpenedModel, statistics: Any, task: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    for bad, words in [
        (asked(task, task), "Two tasks of a comparison have the same name"),
        (asked(empty), "empty.jsonl is empty"),
        (asked(tmp_path / "none.jsonl"), "none.jsonl"),
        (asked(), "no text or task"),
    ]:
        with pytest.raises(InputError, match=words):
            compare(opened, statistics, bad)


def test_the_command(folder: Path, text: Path, task: Path, tmp_path: Path) -> None:
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    line = ["compare", str(folder), "--methods", "svd", "--ratios", "0.5", "--sizes", "126kB", *options]
    out = tmp_path / "out"
    result = edge_svd(*line, "--task", str(task), "--task-limit", "7", "-o", str(out))
    assert result.code == 0, result.err
    assert all(words in result.out for words in ("words 0.5", "words 126.0 kB", "±", "7 items of words"))
    page = (out / "index.html").read_text()
    assert "words, 7 items" in page and 'id="h-tasks"' in page and 'id="h-losses"' not in page
    assert page.count('class="dense"') == 1 and "over dense" not in page
    edge_svd(*line).refused(2, "no text or task")
