"""Damage done to folders of models and bundles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


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


def flip_a_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    content[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(content)


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
    "unsupported": (lambda folder: (folder / "config.json").write_text('{"model_type": "mamba"}'), 2, "mamba"),
    "unheard of": (lambda folder: (folder / "config.json").write_text('{"model_type": "nonesuch"}'), 2, "nonesuch"),
}
