"""Everything wrong that a person can type or hand over ends as one sentence and an exit code, with nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Outcome, edge_svd
from safetensors.torch import load_file, save_file
from tiny_folder import tiny_folder, tiny_text

from edge_svd.calibrate.statistics import Statistics
from edge_svd.models import open_model

SIZE = 190_000
WINDOWS = ("--calibration-windows", "8", "--calibration-window", "64")


@dataclass(frozen=True)
class Made:
    """What the steps of a fit write, each from the one before."""

    model: Path
    text: Path
    stats: Path
    plan: Path
    checkpoint: Path
    bundle: Path
    answers: dict[str, Any]

    @property
    def calibration(self) -> tuple[str, ...]:
        return ("--calibration", str(self.text), *WINDOWS)


@pytest.fixture(scope="module")
def made(
    tiny_model: Path, tiny_text_file: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    stats, plan, checkpoint, bundle = (folder / name for name in ("stats", "plan.json", "checkpoint", "bundle"))
    model, text = str(tiny_model), str(tiny_text_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SVD_CACHE", str(shared_cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        answers = {
            "calibrate": edge_svd("calibrate", model, "-o", stats, "--calibration", text, *WINDOWS, "--json").json,
            "plan": edge_svd("plan", model, "--stats", stats, "--size", SIZE, "-o", plan, "--json").json,
            "compress": edge_svd("compress", model, "--plan", plan, "--stats", stats, "-o", checkpoint, "--json").json,
            "export": edge_svd("export", checkpoint, "-o", bundle, "--json").json,
        }
        yield Made(tiny_model, tiny_text_file, stats, plan, checkpoint, bundle, answers)


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    """Where the refused command was told to write: afterwards neither it nor anything beside it exists."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder / "out"
    assert list(folder.iterdir()) == []


def fit(made: Made, out: Path, *arguments: Any, model: Any = None, size: Any = SIZE) -> Outcome:
    chosen = made.model if model is None else model
    return edge_svd("fit", chosen, "-o", out, f"--size={size}", *made.calibration, *arguments)


# --- what works -------------------------------------------------------------------------------------------------------


def test_every_command_prints_one_json_object(made: Made, tmp_path: Path) -> None:
    assert {row["name"] for row in edge_svd("methods", "--json").json["methods"]} >= {"svd", "svd-llm-v2", "io-svd"}
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
        assert set(figures) == {"file_bytes", "peak_rss_bytes", "kl", "decode_tokens_per_s"}
    assert fitted["measured"]["file_bytes"] == promised


def test_without_arguments_the_help_is_bad_usage() -> None:
    shown = edge_svd()
    assert shown.code == 2 and shown.out == "" and shown.err.startswith("Usage: edge-svd")


# --- options ----------------------------------------------------------------------------------------------------------


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
        ("--method", "nope", "io-svd, svd, svd-llm-v2"),
        ("--allocation", "nope", "second-order"),
        ("--candidates", "low-rank,int3", "int8"),
        ("--candidates", "", "int8"),
        ("--recipe", "nope", "smollm2-demo-110mb"),
        ("--recipe", "absent.toml", "absent.toml"),
        ("--device", "nowhere", "--device"),
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


# --- models -----------------------------------------------------------------------------------------------------------

HEADER = struct.pack("<4sIQQ", b"GGUF", 3, 1, 2)


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


WHOLE = (
    HEADER
    + gguf_string("general.architecture")
    + struct.pack("<I", 8)
    + gguf_string("llama")
    + gguf_string("llama.block_count")
    + struct.pack("<II", 4, 1)
    + gguf_string("token_embd.weight")
    + struct.pack("<IQQIQ", 2, 64, 32, 0, 0)
)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "cannot be read"),
        (b"GGUF", "truncated"),
        (HEADER[:-3], "truncated"),
        (WHOLE[:60], "truncated"),
        (WHOLE[:-5], "truncated"),
        (WHOLE + bytes(1000), "token_embd.weight ends after the end"),
        (b"hello" * 100, "not a GGUF file"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 0, 0), "version 9"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "architecture"),
    ],
)
def test_gguf_files(content: bytes, word: str, made: Made, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    fit(made, out, model=file).refused(2, word, str(file))


def edit_weight(name: str, change: Callable[[torch.Tensor], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights[name])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def cut(name: str, length: int) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:length])

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGED_MODELS: dict[str, tuple[Callable[[Path], Any], int, str]] = {
    "nan": (edit_weight(UP, lambda w: w[3].fill_(float("nan"))), 2, UP),
    "infinity": (edit_weight(UP, lambda w: w[3, 4].fill_(float("inf"))), 2, UP),
    "overflow": (edit_weight(UP, lambda w: w.mul_(1e38)), 1, "NaN or Inf"),
    "cut weights": (cut("model.safetensors", 5000), 2, "cannot be opened"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), 2, "no weights"),
    "cut config": (cut("config.json", 40), 2, "config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), 2, "config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), 2, "tokenizer"),
    "unsupported": (lambda folder: (folder / "config.json").write_text('{"model_type": "gpt2"}'), 2, "gpt2"),
    "unheard of": (lambda folder: (folder / "config.json").write_text('{"model_type": "nonesuch"}'), 2, "nonesuch"),
}


@pytest.mark.parametrize("damage", list(DAMAGED_MODELS))
def test_damaged_model_folders(damage: str, made: Made, out: Path, tmp_path: Path) -> None:
    change, code, word = DAMAGED_MODELS[damage]
    folder = Path(shutil.copytree(made.model, tmp_path / "model"))
    change(folder)
    fit(made, out, model=folder).refused(code, word)


# --- calibration text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("latin.txt", "é".encode("latin-1") * 5000, "UTF-8"),
        ("short.txt", b"The river", "fewer than one window"),
        ("few.txt", tiny_text(20).encode(), "lower --calibration-windows"),
        ("absent.txt", None, "does not exist"),
        ("cut.jsonl", b'{"text": "The ri', "not JSON"),
        ("nothing.txt.gz", b"no gzip", "cannot be read"),
    ],
)
def test_calibration_text(name: str, content: bytes | None, word: str, made: Made, out: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    for command in (("fit", made.model, "--size", SIZE), ("calibrate", made.model)):
        edge_svd(*command, "-o", out, "--calibration", file, *WINDOWS).refused(2, word, str(file))


@pytest.mark.parametrize("source", ["", "hub:", "self:0", "self:-1", "self:nan"])
def test_calibration_sources(source: str, made: Made, out: Path) -> None:
    edge_svd("calibrate", made.model, "-o", out, "--calibration", source, *WINDOWS).refused(2, repr(source))


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "is empty"), (b"\xff\xfe\x00", "UTF-8"), (b"The river", "fewer than one window"), (None, "not exist")],
)
def test_evaluation_text(content: bytes | None, word: str, made: Made, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    for target in (made.bundle, made.model, made.checkpoint):
        edge_svd("eval", target, "--text", file, "--window", 64).refused(2, word)


# --- outputs ----------------------------------------------------------------------------------------------------------


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Every file below a place with its content."""
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link", "below a file"])
def test_foreign_outputs_are_left_alone(kind: str, force: list[str], made: Made, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    target = place / "mine"
    if kind == "file":
        target.write_text("diary")
    elif kind == "link":
        target.symlink_to(made.bundle)
    elif kind == "below a file":
        target.write_text("diary")
        target = target / "out"
    else:
        target.mkdir()
        if kind == "folder":
            (target / "diary.txt").write_text("diary")
    before = snapshot(place)
    fit(made, target, *force).refused(2, str(target))
    edge_svd("export", made.checkpoint, "-o", target, *force).refused(2, str(target))
    if kind in ("file", "folder"):
        compress = ("compress", made.model, "--plan", made.plan, "--stats", made.stats)
        edge_svd(*compress, "-o", target, *force).refused(2, str(target))
        edge_svd("calibrate", made.model, *made.calibration, "-o", target).refused(2, str(target))
        edge_svd("plan", made.model, "--stats", made.stats, "--size", SIZE, "-o", target).refused(2, str(target))
    assert snapshot(place) == before


def test_ours_is_replaced_only_by_force(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "place"
    bundle = Path(shutil.copytree(made.bundle, place / "bundle"))
    checkpoint = Path(shutil.copytree(made.checkpoint, place / "checkpoint"))
    before = snapshot(place)
    compress = ("compress", made.model, "--plan", made.plan, "--stats", made.stats, "-o")
    fit(made, bundle).refused(2, "--force")
    edge_svd("export", made.checkpoint, "-o", bundle).refused(2, "--force")
    edge_svd(*compress, checkpoint).refused(2, "--force")
    edge_svd(*compress, bundle, "--force").refused(2, "not a checkpoint")
    edge_svd("export", made.checkpoint, "-o", checkpoint, "--force").refused(2, "not an edge-svd bundle")
    assert snapshot(place) == before
    assert edge_svd("export", made.checkpoint, "-o", bundle, "--force").code == 0
    assert edge_svd(*compress, checkpoint, "--force").code == 0
    assert snapshot(place) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kB; needs root."""
    place = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "edge-svd-test", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
            pytest.skip("needs root and permission to mount a tmpfs")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [40, 130, 260, 400])
def test_disk_full(kilobytes: int, made: Made, small_disk: Callable[[int], Path]) -> None:
    """At the first weights, between two layers, at the bundle's weights, at one of its small files."""
    disk = small_disk(kilobytes)
    fit(made, disk / "out").refused(1, "No space left on device", str(disk))
    assert {path.name for path in disk.iterdir()} <= {"out.partial"}
    assert not [path for path in disk.rglob("*") if path.name.endswith((".tmp", ".old"))]
    shutil.rmtree(disk / "out.partial", ignore_errors=True)
    if kilobytes < 260:
        edge_svd("export", made.checkpoint, "-o", disk / "out").refused(1, "No space left on device")
        assert list(disk.iterdir()) == []


# --- bundles ----------------------------------------------------------------------------------------------------------


def flip_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    content[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(content)


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "edge_svd.json").read_bytes())
    change(manifest)
    (bundle / "edge_svd.json").write_text(json.dumps(manifest))


def swap_tokenizer(bundle: Path, signed: bool = False) -> None:
    """Another model's; with `signed`, its digest stands in the manifest."""
    tokenizer = json.loads((bundle / "tokenizer.json").read_bytes())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 5000, "content": "<|more|>"})
    content = json.dumps(tokenizer).encode()
    (bundle / "tokenizer.json").write_bytes(content)
    if signed:
        entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        edit_manifest(bundle, lambda manifest: manifest["files"].update({"tokenizer.json": entry}))


def leave_the_folder(bundle: Path) -> None:
    shutil.copy(bundle / "config.json", bundle.parent / "outside.json")
    edit_manifest(bundle, lambda m: m["files"].update({"../outside.json": m["files"]["config.json"]}))


DAMAGED_BUNDLES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one flipped byte": (flip_a_byte, "model.onnx.data"),
    "missing file": (lambda bundle: (bundle / "config.json").unlink(), "config.json is missing"),
    "swapped tokenizer": (swap_tokenizer, "tokenizer.json"),
    "path that leaves the folder": (leave_the_folder, "../outside.json"),
    "no manifest": (lambda bundle: (bundle / "edge_svd.json").unlink(), "not a bundle"),
    "half a manifest": (cut("edge_svd.json", 100), "manifest"),
}


def uses(bundle: Path, text: Path) -> dict[str, Outcome]:
    """What every command that opens a bundle says of it."""
    return {
        "run": edge_svd("run", bundle, "--prompt", "The river"),
        "bench": edge_svd("bench", bundle, "--prompt-tokens", 8, "--new-tokens", 4),
        "inspect": edge_svd("inspect", bundle, "--json"),
        "chat": edge_svd("chat", bundle, stdin="hello\n"),
        "eval": edge_svd("eval", bundle, "--text", text, "--window", 64),
    }


@pytest.mark.parametrize("damage", list(DAMAGED_BUNDLES))
def test_damaged_bundles(damage: str, made: Made, tmp_path: Path) -> None:
    change, word = DAMAGED_BUNDLES[damage]
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    change(bundle)
    edge_svd("verify", bundle).refused(1, word)
    edge_svd("verify", bundle, "--json").refused(1, word)
    for command, outcome in uses(bundle, made.text).items():
        outcome.refused(2, *([word] if command != "eval" or "manifest" not in damage else []))


def test_a_signed_tokenizer_of_another_model(made: Made, tmp_path: Path) -> None:
    """The manifest agrees with the files, but the tokenizer knows tokens that the model does not have."""
    bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
    swap_tokenizer(bundle, signed=True)
    edge_svd("verify", bundle).refused(1, "do not belong together")
    for command, outcome in uses(bundle, made.text).items():
        if command != "inspect":
            outcome.refused(2, "do not belong together")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["run", "--prompt", ""], "prompt is empty"),
        (["run", "--prompt", "x", "--context", "1000000"], "256"),
        (["run", "--prompt", "river " * 400], "256"),
        (["run", "--prompt", "x", "--temperature", "nan"], "--temperature"),
        (["run", "--prompt", "x", "--top-p", "0"], "top-p"),
        (["run", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["bench"], "256"),
        (["bench", "--new-tokens", "0"], "--new-tokens"),
    ],
)
def test_what_a_bundle_cannot_do(arguments: list[str], word: str, made: Made) -> None:
    edge_svd(arguments[0], made.bundle, *arguments[1:]).refused(2, word)


@pytest.mark.parametrize("command", ["verify", "inspect", "chat", "bench"])
def test_absent_bundles(command: str, tmp_path: Path) -> None:
    edge_svd(command, tmp_path / "absent").refused(2, "absent")


# --- statistics and plans ---------------------------------------------------------------------------------------------


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
        patch.setattr("edge_svd.calibrate.run.add_gradients", stop)
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
EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "bytes": (lambda plan: plan["sites"][NAME].update(bytes=5), "5 bytes"),
    "format": (lambda plan: plan["sites"][NAME].update(kind="low-rank", k8=16, k16=0), NAME),
    "rank": (lambda plan: plan["sites"][NAME].update(kind="low-rank", k8=7, k16=0), "multiples of 16"),
    "unknown format": (lambda plan: plan["sites"][NAME].update(kind="int3"), "int3"),
    "missing matrix": (lambda plan: plan["sites"].pop(NAME), NAME),
    "extra matrix": (lambda plan: plan["sites"].update(x=plan["sites"][NAME]), "matrix x"),
    "size": (lambda plan: plan["predicted"].update(file_bytes=1), "makes"),
    "context": (lambda plan: plan.update(context=100_000), "256"),
    "version": (lambda plan: plan.update(format=9), "version 1"),
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
    plan["sites"][NAME] |= {"kind": "low-rank", "k8": 16, "k16": 0}
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


# --- in a process of its own ------------------------------------------------------------------------------------------

MAIN = "import sys; sys.argv[0] = 'edge-svd'; from edge_svd.cli import main; main()"


def process(*arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", MAIN, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(started: subprocess.Popen[str]) -> Outcome:
    printed, err = started.communicate(timeout=300)
    return Outcome(started.returncode, printed, err)


@pytest.mark.parametrize("case", ["budget", "nan", "bundle"])
def test_nothing_else_reaches_stderr(case: str, made: Made, out: Path, tmp_path: Path) -> None:
    """In a fresh process, where libraries print their warnings the first time they are used."""
    if case == "budget":
        ended(process("fit", made.model, "-o", out, "--size", 5000, *made.calibration)).refused(3, "smallest")
    elif case == "nan":
        folder = Path(shutil.copytree(made.model, tmp_path / "model"))
        DAMAGED_MODELS["nan"][0](folder)
        ended(process("fit", folder, "-o", out, "--size", SIZE, *made.calibration)).refused(2, UP)
    else:
        bundle = Path(shutil.copytree(made.bundle, tmp_path / "bundle"))
        flip_a_byte(bundle)
        ended(process("run", bundle, "--prompt", "x")).refused(2, "model.onnx.data")


@pytest.mark.parametrize("moment", ["Calibration …", "Proving"])
def test_interrupting_ends_with_one_sentence(moment: str, made: Made, tmp_path: Path) -> None:
    target = tmp_path / "place" / "out"
    target.parent.mkdir()
    started = process("fit", made.model, "-o", target, "--size", SIZE, *made.calibration, "--seed", 7)
    assert started.stderr is not None
    lines = []
    for line in started.stderr:
        lines.append(line)
        if line.startswith(moment):
            time.sleep(0.05)
            started.send_signal(signal.SIGINT)
            break
    outcome = ended(started)
    Outcome(outcome.code, outcome.out, "".join(lines) + outcome.err).refused(1, "Interrupted")
    assert {path.name for path in target.parent.iterdir()} <= {"out.partial"}
