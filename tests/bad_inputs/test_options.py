"""Options: `--json` prints one object, and what is wrong or missing is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_input_tools import Made, fit
from command_line import edge_svd


def test_every_command_prints_one_json_object(made: Made, tmp_path: Path) -> None:
    assert {row["name"] for row in edge_svd("methods", "--json").json["methods"]} >= {"svd", "svd-llm-v2", "io-svd"}
    listed = [row for rows in edge_svd("methods", "--json").json.values() for row in rows]
    assert all(len(row["summary"]) > 20 and "partial(" not in row["summary"] for row in listed)
    assert edge_svd("recipes", "--json").json["recipes"]
    assert made.answers["calibrate"]["tokens"] == 7 * 64
    assert made.answers["plan"]["plan"] == json.loads(made.plan.read_bytes())
    promised = made.answers["compress"]["predicted"]["file_bytes"]
    assert made.answers["export"] == {"bundle": str(made.bundle), "file_bytes": promised}
    assert edge_svd("inspect", made.plan, "--json").json == {"plan": made.answers["plan"]["plan"]}
    assert edge_svd("inspect", made.bundle, "--json").json["file_bytes"] == promised
    assert edge_svd("verify", made.bundle, "--json").json["file_bytes"] == promised
    text = ("--text", made.text, "--window", 64, "--windows", 2, "--json")
    for target in (made.bundle, made.model, made.checkpoint):
        assert edge_svd("eval", target, *text).json["tokens"] == 126
    assert 0 < edge_svd("eval", made.bundle, *text, "--reference", made.model).json["kl_to_reference"] < 0.1
    assert edge_svd("run", made.bundle, "--prompt", "The river", "--max-new-tokens", 4, "--json").json["text"]
    assert len(edge_svd("chat", made.bundle, "--max-new-tokens", 4, "--json", stdin="a\n\nb\n").json["replies"]) == 2
    bench = edge_svd("bench", made.bundle, "--prompt-tokens", 8, "--new-tokens", 4, "--json").json
    assert bench["file_bytes"] == promised and bench["decode_tokens_per_s"] > 0
    fitted = fit(made, tmp_path / "fitted", "--json").json
    assert set(fitted) >= {"bundle", "predicted", "measured", "plan"}
    for figures in (fitted["predicted"], fitted["measured"]):
        speeds = {"decode_tokens_per_s", "prefill_tokens_per_s"}
        assert set(figures) == {"file_bytes", "peak_rss_bytes", "kl", *speeds}
    assert fitted["measured"]["file_bytes"] == promised


def test_without_arguments_the_help_is_bad_usage() -> None:
    shown = edge_svd()
    assert shown.code == 2 and shown.out == "" and shown.err.startswith("Usage: edge-svd")


def test_smallest_size_is_named_and_reachable(made: Made, out: Path, tmp_path: Path) -> None:
    sentence = fit(made, out, size=5000).refused(3, "the smallest possible is", "takes")
    smallest = int(sentence.split("smallest possible is ")[1].split()[0])
    fit(made, out, size=smallest - 1).refused(3, str(smallest))
    planned = edge_svd("plan", made.model, "--stats", made.stats, "--size", 5000, "-o", out)
    planned.refused(3, str(smallest))
    reached = fit(made, tmp_path / "smallest", "--json", size=smallest).json
    assert reached["measured"]["file_bytes"] <= smallest


@pytest.mark.parametrize("size", ["12parsecs", "-5MB", "0", "nan", "", "1e400MB", "9" * 400, "1.5.2MB", "٣MB", "MB"])
def test_sizes_that_do_not_parse(size: str, made: Made, out: Path) -> None:
    fit(made, out, size=size).refused(2, "size")
    edge_svd("plan", made.model, "--stats", made.stats, f"--size={size}", "-o", out).refused(2, "size")


@pytest.mark.parametrize("model", ["no-such-model", "no/such-model", "./absent", "a/b/c", "absent.gguf", ""])
def test_unknown_models(model: str, made: Made, out: Path, tmp_path: Path) -> None:
    fit(made, out, model=model).refused(2, model)
    edge_svd("eval", model, "--text", made.text).refused(2, model)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--method", "nope", "asvd, asvd-iii, fwsvd, io-svd"),
        ("--allocation", "nope", "second-order"),
        ("--candidates", "low-rank,int3", "int8"),
        ("--candidates", "", "int8"),
        ("--recipe", "nope", "smollm2-demo-110mb"),
        ("--recipe", "absent.toml", "absent.toml"),
        ("--device", "nowhere", "pi-5-8gb"),
        ("--device", "absent.toml", "absent.toml"),
        ("--ram", "many", "many"),
        ("--min-decode-tps", "-1", "positive"),
        ("--min-decode-tps", "nan", "positive"),
        ("--prompt-chunk", "0", "--prompt-chunk"),
        ("--threads", "0", "--threads"),
        ("--threads", "two", "--threads"),
        ("--seed", "-1", "--seed"),
        ("--seed", str(10**30), "--seed"),
        ("--context", "100000", "256"),
        ("--calibration-windows", "0", "--calibration-windows"),
        ("--calibration-window", "5000", "256"),
    ],
)
def test_unknown_names_and_options(option: str, value: str, words: str, made: Made, out: Path) -> None:
    fit(made, out, option, value).refused(2, words)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["fit"], "model"), (["fit", "m"], "size"), (["fit", "m", "--size", "1MB"], "-o OUT"), (["nonsense"], "nonsense")],
)
def test_what_is_missing_is_named(arguments: list[str], word: str) -> None:
    edge_svd(*arguments).refused(2, word)


def test_unknown_kernel_choice(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SVD_KERNELS", "nope")
    fit(made, out, "--calibration-windows", "9").refused(2, "EDGE_SVD_KERNELS", "nope", "reference")
