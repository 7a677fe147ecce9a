"""Statistics and plans of another model, interrupted, or edited by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input_tools import SIZE, WINDOWS, Made
from command_line import edge_svd
from tiny_folder import tiny_folder, tiny_text

from edge_svd.calibrate.statistics import Statistics
from edge_svd.models import open_model


def test_statistics_and_plans_of_another_model(made: Made, out: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", rms_norm_eps=1e-4)
    size = ("--size", SIZE, "-o", out)
    edge_svd("plan", other, "--stats", made.stats, *size).refused(2, "another model")
    edge_svd("plan", made.model, "--stats", tmp_path, *size).refused(2, "statistics.json")
    files = ("--stats", made.stats, "-o", out)
    edge_svd("compress", other, "--plan", made.plan, *files).refused(2, "another model")
    edge_svd("compress", made.model, "--plan", tmp_path / "absent.json", *files).refused(2, "absent.json")
    stats = Path(shutil.copytree(made.stats, tmp_path / "stats"))
    manifest = json.loads((stats / "statistics.json").read_bytes())
    manifest["key"]["seed"] = 5
    (stats / "statistics.json").write_text(json.dumps(manifest))
    edge_svd("compress", made.model, "--plan", made.plan, "--stats", stats, "-o", out).refused(2, "calibrate again")


def test_interrupted_statistics_are_not_continued_with_another_text(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("edge_svd.calibrate.extras.add_gradients", stop)
        begun = edge_svd("calibrate", made.model, "-o", tmp_path / "continued", *made.calibration)
        begun.refused(1, "Interrupted")
    other = tmp_path / "other.txt"
    other.write_text(tiny_text()[20_000:])
    site = next(site for site in open_model(str(made.model)).sites if site.type == "down")
    metrics = []
    for name in ("continued", "fresh"):
        command = ("calibrate", made.model, "-o", tmp_path / name, "--calibration", other, *WINDOWS)
        assert edge_svd(*command).code == 0
        metrics.append(Statistics.open(tmp_path / name).c_in(site))
    torch.testing.assert_close(*metrics)


NAME = "model.layers.0.mlp.up_proj"


def swap(plan: dict[str, Any], **fmt: Any) -> None:
    """Give one matrix another format."""
    entry = plan["sites"][NAME]
    plan["sites"][NAME] = {key: entry[key] for key in ("bytes", "loss")} | fmt


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bytes": (lambda plan: plan["sites"][NAME].update(bytes=5), "5 bytes"),
    "format": (lambda plan: swap(plan, kind="low-rank", k8=16, k16=0), NAME),
    "rank": (lambda plan: swap(plan, kind="low-rank", k8=7, k16=0), "multiples of 16"),
    "bits": (lambda plan: swap(plan, kind="trellis", bits=7), "1 to 6"),
    "blocks": (lambda plan: swap(plan, kind="blocks", bits=4, block=48, zero=False), "blocks of 48"),
    "zero points": (lambda plan: swap(plan, kind="blocks", bits=4, block=32, zero=1), "true or false"),
    "rows": (lambda plan: swap(plan, kind="table", rows=[[3, 10], [4, 20]]), "row groups"),
    "group": (lambda plan: swap(plan, kind="table", rows=[[3]]), "pairs of integers"),
    "unknown format": (lambda plan: swap(plan, kind="int3"), "int3"),
    "missing matrix": (lambda plan: plan["sites"].pop(NAME), NAME),
    "extra matrix": (lambda plan: plan["sites"].update(x=plan["sites"][NAME]), "matrix x"),
    "size": (lambda plan: plan["predicted"].update(file_bytes=1), "makes"),
    "peak": (lambda plan: plan["predicted"].update(peak_rss_bytes=1), "add up"),
    "memory part": (lambda plan: plan["predicted"]["memory"].pop("KV cache"), "KV cache"),
    "no target": (lambda plan: plan["targets"].update(file_bytes=None), "budget"),
    "target": (lambda plan: plan["targets"].update(decode_tokens_per_s=-1.0), "positive"),
    "context": (lambda plan: plan.update(context=100_000), "256"),
    "version": (lambda plan: plan.update(format=9), "version 3"),
    "not a number": (lambda plan: plan["predicted"].update(kl="NaN"), "NaN"),
    "no table": (lambda plan: plan.update(sites=[]), "misstates"),
}


@pytest.mark.parametrize("edit", list(EDITS))
def test_edited_plans_that_do_not_add_up(edit: str, made: Made, out: Path, tmp_path: Path) -> None:
    change, word = EDITS[edit]
    plan = json.loads(made.plan.read_bytes())
    change(plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = ("--plan", tmp_path / "plan.json", "--stats", made.stats, "-o", out)
    edge_svd("compress", made.model, *arguments).refused(2, word)


def test_an_edited_plan_that_adds_up_is_obeyed(made: Made, tmp_path: Path) -> None:
    """The refusals name the right numbers; with these the plan goes through, and the bundle has that size."""
    plan, file = json.loads(made.plan.read_bytes()), tmp_path / "plan.json"
    swap(plan, kind="low-rank", k8=16, k16=0)
    command = ("compress", made.model, "--plan", file, "--stats", made.stats, "-o", tmp_path / "checkpoint")
    for entry, key, words in ((plan["sites"][NAME], "bytes", "takes "), (plan["predicted"], "file_bytes", "makes ")):
        file.write_text(json.dumps(plan))
        entry[key] = int(edge_svd(*command).refused(2, words).split(words)[1].split(";")[0])
    file.write_text(json.dumps(plan))
    assert edge_svd(*command).code == 0
    exported = edge_svd("export", tmp_path / "checkpoint", "-o", tmp_path / "bundle", "--json").json
    assert exported["file_bytes"] == plan["predicted"]["file_bytes"]


@pytest.mark.parametrize("content", ["{", "[]", '{"sites": {"a": 1}, "predicted": 1, "solver": 1, "target_bytes": 3}'])
def test_inspecting_what_is_no_plan(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    edge_svd("inspect", tmp_path / "plan.json").refused(2, "plan.json")
