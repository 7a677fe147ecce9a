"""The script that makes the tables of docs/methods.md: its commands parse, and its tables hold what was measured."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_svd.compare.asked import Asked
from edge_svd.fit_options import names_of, ratios_of

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "methods.py"


@pytest.fixture(scope="module")
def methods() -> Any:
    spec = importlib.util.spec_from_file_location("methods_tables", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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
        ).check()
    monkeypatch.setattr(sys, "argv", ["methods.py", "MODEL", "--data", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="has no wikitext2_raw.train.txt"):
        methods.main()


def test_tables(methods: Any) -> None:
    row = {"method": "svd", "allocation": "uniform", "heal": "none", "ratio": 0.8, "text": "a", "kl": 2.5}
    table = {
        "rows": [row | {"over_dense": 3.5}, row | {"text": "b", "over_dense": 4e6}],
        "texts": [{"name": "a", "dense_perplexity": 20.0}, {"name": "b", "dense_perplexity": 30.0}],
    }
    assert methods.text_table(table) == [
        "| | a 0.8 | b 0.8 |",
        "|---|---|---|",
        "| dense, perplexity | 20.00 | 30.00 |",
        "| svd, uniform | 3.500 (2.5) | 4.0e+06 (2.5) |",
    ]
    score = {"method": "dense", "allocation": None, "ratio": None, "acc_stderr": 0.02, "n": 200}
    tasks = [score | {"task": "x", "acc": 0.5, "acc_norm": 0.5}, score | {"task": "y", "acc": 0.3, "acc_norm": 0.4}]
    assert methods.task_table({"tasks": tasks})[2] == "| dense | 50.0% ± 2.0% | 30.0% ± 2.0% / 40.0% | 40.0% |"
