"""The main job on a real model: SmolLM2-135M-Instruct, fitted, proven and asked a question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smollm2_commands import FEW, SIZE, answer, command

from edge_svd.export.prove import inspect_session


def test_size_is_met_exactly_and_used(fitted: dict[str, Any]) -> None:
    folder = Path(fitted["bundle"])
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size == fitted["predicted"]["file_bytes"] == fitted["measured"]["file_bytes"]
    assert 0.99 * SIZE <= size <= SIZE


def test_what_runs_is_what_was_planned(fitted: dict[str, Any]) -> None:
    proof = fitted["proof"]
    assert proof["positions"] >= 64 * 32
    assert proof["top1_agreement"] >= 0.95
    assert proof["kl_mean"] <= 0.005
    assert fitted["plan"]["solver"]["gap"] <= 0.005
    assert fitted["measured"]["kl"] < 1.0


def test_no_matrix_is_widened_in_the_session(fitted: dict[str, Any]) -> None:
    """Everything large stays int8; what is fp32 are scales (one a block of 16 inputs at most), norms, rotary tables."""
    weights = inspect_session(Path(fitted["bundle"]))
    int8 = sum(size for _, dtype, size in weights if "int8" in dtype.lower())
    head_scales = 49152 * (576 // 16) * 4
    wide = [row for row in weights if "int8" not in row[1].lower() and row[2] > head_scales]
    assert int8 > 100_000_000
    assert not wide, wide
    assert sum(size for _, dtype, size in weights if "int8" not in dtype.lower()) < 0.3 * int8


def test_answers_a_question(fitted: dict[str, Any]) -> None:
    # Every token of the dense model's own answer is at least 2.6 times as likely as the next; asked about France, its
    # first one is 1.08 times as likely, which is no fair question to a compressed copy.
    prompt = ["--prompt", "What is the capital of Japan?", "--max-new-tokens", "24"]
    text = answer("run", fitted["bundle"], "--chat", *prompt)["text"]
    assert "Tokyo" in text
    streamed = command("run", fitted["bundle"], "--chat", *prompt)
    assert streamed.returncode == 0 and streamed.stdout.strip() == text.strip()


def test_verify_eval_bench_inspect(fitted: dict[str, Any], tmp_path: Path) -> None:
    bundle = fitted["bundle"]
    assert command("verify", bundle).returncode == 0
    text = tmp_path / "text.txt"
    text.write_text("The river rises in the hills and runs to the sea, past mills and markets. " * 80)
    scored = answer("eval", bundle, "--text", str(text), "--window", "128", "--windows", "4")
    assert 1 < scored["perplexity"] < 60 and scored["tokens"] == 4 * 127
    speed = answer("bench", bundle, "--prompt-tokens", "64", "--new-tokens", "16", "--context", "96")
    assert speed["file_bytes"] == fitted["measured"]["file_bytes"]
    assert speed["peak_rss_bytes"] is None or speed["peak_rss_bytes"] < 750_000_000
    assert answer("inspect", bundle)["plan"]["sites"]


def test_size_below_the_smallest_is_refused(model: str, fitted: dict[str, Any], tmp_path: Path) -> None:
    done = command("fit", model, "-o", str(tmp_path / "out"), "--size", "10MB", *FEW)
    assert done.returncode == 3
    assert "smallest possible is" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
