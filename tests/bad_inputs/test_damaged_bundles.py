"""Bundles that are damaged or absent, or asked for more than they can do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input_damage import cut, flip_a_byte
from bad_input_tools import Made
from command_line import Outcome, edge_svd


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
