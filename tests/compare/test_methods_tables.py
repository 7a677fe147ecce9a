"""The scripts behind docs/methods.md: commands parse, and every table of the page is what was measured."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_svd.compare.asked import Asked
from edge_svd.fit_options import names_of, ratios_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def methods(scripts: Any) -> Any:
    return scripts("methods")


@pytest.fixture(scope="module")
def tables(scripts: Any) -> Any:
    return scripts("methods_tables")


def test_every_command_is_one_that_compare_takes(
    methods: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["wikitext2_raw.train.txt", *(f"{text}.test.txt.gz" for text in methods.TEXTS)]
    for name in [*names, *(f"{task}.jsonl.gz" for task in methods.TASKS)]:
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "argv", ["methods.py", "MODEL", "--data", str(tmp_path), "--commands"])
    methods.main()
    printed = capsys.readouterr().out
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("    edge-svd")]
    assert len(commands) == len(methods.PARTS)
    for command in commands:
        given: dict[str, list[str]] = {}
        for option, value in zip(command[3:-1:2], command[4:-1:2], strict=True):
            given.setdefault(option, []).append(value)
        texts, tasks = (tuple(map(Path, given.get(name, []))) for name in ("--text", "--task"))
        assert texts or tasks
        Asked(
            names_of(given["--methods"][0]),
            names_of(given["--allocations"][0]),
            ratios_of(given["--ratios"][0]),
            texts,
            heals=names_of(given.get("--heal", ["none"])[0]),
            tasks=tasks,
            storages=names_of(given.get("--factors", ["plain"])[0]),
        ).check()
    shown = methods.PARTS["tasks"].command("MODEL", tmp_path, shown=Path("DIR"))
    assert "DIR/piqa.jsonl.gz" in shown and not any(str(tmp_path) in word for word in shown)
    monkeypatch.setattr(sys, "argv", ["methods.py", "MODEL", "--data", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="has no wikitext2_raw.train.txt"):
        methods.main()


ROW = {
    "method": "svd",
    "allocation": "uniform",
    "factors": "plain",
    "heal": "none",
    "ratio": 0.8,
    "text": "a.test",
    "kl": 2.5,
}


def test_text_tables(tables: Any) -> None:
    first = {
        "rows": [ROW | {"over_dense": 3.5}, ROW | {"text": "b", "over_dense": 4e6}],
        "texts": [{"name": "a.test", "dense_perplexity": 20.0}, {"name": "b", "dense_perplexity": 30.0}],
    }
    assert tables.text_table([first]) == [
        "| | a 0.8 | b 0.8 |",
        "|---|---|---|",
        "| dense, perplexity | 20.00 | 30.00 |",
        "| `svd`, `uniform` | 3.500 (2.5) | 4.0e+06 (2.5) |",
    ]
    other = first | {"rows": [ROW | {"ratio": 0.9, "over_dense": 1.5}, ROW | {"method": "asvd", "over_dense": 12.25}]}
    assert tables.text_table([other, first], text="a.test") == [
        "| | 0.9 | 0.8 |",
        "|---|---|---|",
        "| `svd`, `uniform` | 1.500 (2.5) | 3.500 (2.5) |",
        "| `asvd`, `uniform` | – | 12.2 (2.5) |",
    ]
    assert tables.text_table([other, first], ratio=0.9)[0] == "| | a |"
    pivoted = first | {"rows": [row | {"factors": "pivoted", "over_dense": 1.5} for row in first["rows"][:1]]}
    assert tables.text_table([first, pivoted], text="a.test")[3] == "| `svd`, `uniform`, `pivoted` | 1.500 (2.5) |"


def test_tables_of_healing_and_tasks(tables: Any) -> None:
    step = {"step": "refit", "seconds": 12.4, "kl_before": 0.5, "kl_after": 0.25, "kept": True}
    healed = ROW | {"heal": "refit"}
    table = {
        "rows": [ROW | {"over_dense": 3.5}, healed | {"over_dense": 1.25}],
        "choices": [ROW | {"healing": []}, healed | {"healing": [step, step | {"kept": False}]}],
    }
    took = "12 s, held out 0.500 → 0.250"
    assert tables.healing_table([table])[2:] == [
        "| as decomposed | 3.500 (2.5) |",
        f"| `refit` | 1.250 (2.5); {took}; {took}, not kept |",
    ]
    score = {"method": "dense", "acc_stderr": 0.02, "acc_norm_stderr": 0.01, "n": 200}
    tasks = [score | {"task": "x", "acc": 0.5, "acc_norm": 0.5}, score | {"task": "y", "acc": 0.3, "acc_norm": 0.4}]
    assert tables.task_table([{"tasks": tasks}])[2] == "| dense | 50.0 ± 2.0 | 30.0 ± 2.0 / 40.0 ± 1.0 | 40.0 |"


def test_the_page_shows_what_was_measured(tables: Any) -> None:
    page, parts = tables.PAGE.read_text("utf-8"), json.loads(tables.RESULTS.read_text())["parts"]
    assert "<!-- table: decompositions -->" in page
    assert tables.filled(page, parts) == page
    with pytest.raises(SystemExit, match="was not measured"):
        tables.filled(page, {})


def test_results_name_no_file_of_this_machine(tables: Any) -> None:
    for part in json.loads(tables.RESULTS.read_text())["parts"].values():
        assert part["table"]["rows"] or part["table"]["tasks"]
        assert not any(word.startswith("/") for word in part["command"])
        assert "/" not in part["table"]["model"]["name"]
