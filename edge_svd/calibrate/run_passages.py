"""The pass over an encoder's passages: moments on most of them, the rest kept for checking predictions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.calibrate.passage_moments import PassageMoments, batches, random_signs
from edge_svd.calibrate.run import split
from edge_svd.calibrate.shards import save_shards
from edge_svd.calibrate.statistics import HELD_OUT, MANIFEST, MOMENTS, SIGNS, Statistics, cache_key, manifest_bytes
from edge_svd.encoders.architecture import WORDS, Encoder
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, writing
from edge_svd.kernels.symmetric import SymmetricAccumulator

VERSION = 2
"""Of the estimator."""


def passage_key(model: str, tokenizer: str, source: str, shape: tuple[int, int], seed: int) -> dict[str, Any]:
    """Everything that the statistics depend on; equal keys mean equal statistics on one machine."""
    estimator = {"kind": SIGNS, "version": VERSION, "precision": "float32"}
    ids = {"source": source, "windows": shape[0], "window": shape[1], "seed": seed}
    return {"model": model, "tokenizer": tokenizer, "estimator": estimator, **ids}


def calibrate_passages(
    model: Any,
    encoder: Encoder,
    passages: torch.Tensor,
    frequency: np.ndarray[Any, Any],
    key: dict[str, Any],
    out: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Run the model over passages [count, length] and write the statistics folder `out`; at once where it stands.

    An interrupted run starts afresh: a thousand passages of MiniLM take a minute or two.

    Raises:
        Failure: NaN or Inf in activations, gradients or embeddings; disk full.
        InputError: `out` holds something else.
    """
    if (out / MANIFEST).exists():
        found = Statistics.open(out)
        if cache_key(found.key) != cache_key(key):
            raise InputError(
                f"The folder {out} holds statistics of another model, text or setting; choose another folder."
            )
        return found
    known = {MOMENTS, HELD_OUT}
    if out.exists() and not (
        out.is_dir() and all(file.name.lstrip(".").split(".")[0] in known for file in out.iterdir())
    ):
        raise InputError(f"{out} exists and does not hold statistics of ours; choose another output folder.")
    measured, held = split(len(passages))
    moments = PassageMoments(encoder)
    generator = torch.Generator().manual_seed(int(key["seed"]))
    for batch in batches(passages[measured]):
        progress(moments.passages, len(measured))
        moments.add(model, batch, random_signs(len(batch), encoder.hidden_size, generator))
    with writing(out):
        for leftover in (MOMENTS, HELD_OUT):
            shutil.rmtree(out / leftover, ignore_errors=True)
        tensors = _tensors(moments, torch.from_numpy(frequency))
        save_shards(out / MOMENTS, list(tensors), lambda name: tensors[name]())
        save_shards(out / HELD_OUT, ["ids"], lambda _: passages[held])
        atomic_write(out / MANIFEST, manifest_bytes(key, moments.tokens))
    progress(len(measured), len(measured))
    return Statistics.open(out)


def _share(moments: PassageMoments, name: str) -> torch.Tensor:
    return torch.tensor([moments.noise_share(name)], dtype=torch.float64)


def _tensors(moments: PassageMoments, frequency: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Name in the folder → what makes its tensor."""

    def strips(matrix: Callable[[str], torch.Tensor], name: str) -> Callable[[], torch.Tensor]:
        return lambda: SymmetricAccumulator.of(matrix(name)).buffer

    found = {f"out.{WORDS}": strips(moments.c_out, WORDS)}
    for site in moments.inner:
        found[f"in.{site.name}"] = strips(moments.c_in, site.name)
        found[f"out.{site.name}"] = strips(moments.c_out, site.name)
        found[f"noise.{site.name}"] = partial(_share, moments, site.name)
    # What a decoder predicts next is a second opinion on its text; an encoder has none.
    for name in ("token.frequency", "head.variance"):
        found[name] = lambda: moments.word_shares(frequency)
    return found
