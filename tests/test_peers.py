"""The table against the rivals: the right fit of ours beside each, and losses called losses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "peers.py"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["peers"] = module
    spec.loader.exec_module(module)
    return module


def test_published_figures_are_whole(peers: ModuleType) -> None:
    entries = peers.peer_entries(peers.PEERS)
    assert len(entries) == 16
    assert [entry.bytes for entry in entries] == sorted((entry.bytes for entry in entries), reverse=True)
    by_name = {entry.name: entry for entry in entries}
    assert by_name["llama.cpp Q4_K_M"].change == 0.074 and by_name["llama.cpp Q4_K_M"].bytes == 105_500_000
    assert all(entry.decode and entry.prefill and entry.peak for entry in entries)


def test_ours_is_the_best_that_is_not_larger(peers: ModuleType) -> None:
    ours = [
        peers.Entry(f"fit {mb}", mb * 10**6, change) for mb, change in ((50, 0.9), (90, 0.2), (100, 0.3), (140, 0.0))
    ]
    assert peers.best_within(ours, 49_999_999) is None
    assert peers.best_within(ours, 90_000_000).name == "fit 90"
    assert peers.best_within(ours, 139_000_000).name == "fit 90"
    assert peers.best_within(ours, 140_000_000).name == "fit 140"


def test_losses_are_losses(peers: ModuleType) -> None:
    assert peers.verdict(0.744, 0.074) == "**worse by 62.4%**"
    assert peers.verdict(0.018, 0.16) == "better by 12.2%"
    assert peers.verdict(0.0014, 0.001) == "equal"


def row(name: str, target: int | None, size: int, perplexity: float) -> dict[str, Any]:
    return {"name": name, "target_bytes": target, "file_bytes": size, "perplexity": perplexity}


def test_all_kinds_of_results_are_read(peers: ModuleType, tmp_path: Path) -> None:
    machine = {"processor": "P", "cores": 2, "versions": {"onnxruntime": "1"}}
    figures = {"machine": machine, "date": "d", "rows": [row("dense", None, 538, 30.0), row("fit", 90, 89, 33.0)]}
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    (entry,) = peers.our_entries(tmp_path / "figures.json")
    assert (entry.name, entry.bytes, entry.decode) == ("fit", 89, None) and entry.change == pytest.approx(0.1)
    measured = {
        "file_bytes": 99,
        "perplexity": 31.5,
        "decode_tokens_per_s": 80.0,
        "peak_rss_bytes": 2 * 10**8,
        "kl": 0.1,
    }
    rows: list[dict[str, Any]] = [
        {"label": "1MB", "reachable": False},
        {"label": "99B", "reachable": True, "measured": measured},
        {"label": "98B", "reachable": True, "measured": None},
    ]
    front = {"curves": {}, "dense": {"perplexity": 30.0}, "rows": rows, "machine": machine, "date": "d"}
    (tmp_path / "front.json").write_text(json.dumps(front))
    (entry,) = peers.our_entries(tmp_path)
    assert (entry.name, entry.bytes, entry.decode) == ("fit 99B", 99, 80.0) and entry.change == pytest.approx(0.05)
    sizes = {"perplexity": {"wikitext2_raw": 33.0, "other": 5.0}, "file_bytes": 98, "peak_rss_bytes": 7}
    table = {"machine": machine, "date": "d", "dense": {"perplexity": {"wikitext2_raw": 30.0}}, "rows": {"0.1": sizes}}
    (tmp_path / "sizes.json").write_text(json.dumps(table))
    (entry,) = peers.our_entries(tmp_path / "sizes.json")
    assert (entry.name, entry.bytes, entry.peak) == ("fit 0.1MB", 98, 7) and entry.change == pytest.approx(0.1)
    (tmp_path / "front.json").write_text(json.dumps(front | {"dense": None}))
    with pytest.raises(ValueError, match="--text"):
        peers.our_entries(tmp_path)


def test_the_script_prints_a_table_of_the_newest_sizes() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 17 and len({line.count("|") for line in rows}) == 1
    assert any("worse" in line or "better" in line for line in rows)
    assert "Rivals:" in done.stdout and "Ours: sizes-" in done.stdout


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": [], "curves": {}, "dense": null}', None])
def test_results_that_cannot_be_read(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    if content is not None:
        file.write_text(content)
    done = subprocess.run([sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot be read" in done.stderr and "Traceback" not in done.stderr
