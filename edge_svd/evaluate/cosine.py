"""Quality of an encoder's bundle: the cosine of its sentence embeddings to those of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.encoders.opened import encoder_family, open_encoder
from edge_svd.encoders.pooling import PADDING, embeddings
from edge_svd.errors import InputError
from edge_svd.progress import step
from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.embed import Embedder
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import load_tokenizer

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class CosineLoss:
    """Over passages: mean and least cosine of two embeddings, and the mean of 1 - cosine, free of cancellation."""

    cosine: float
    least: float
    loss: float
    passages: int
    tokens: int

    def to_json(self) -> dict[str, float | int]:
        return {
            "cosine": self.cosine,
            "least_cosine": self.least,
            "loss": self.loss,
            "passages": self.passages,
            "tokens": self.tokens,
        }


def padded_passages(passages: Ids) -> torch.Tensor:
    """int64 [count, longest] with PADDING behind the ends."""
    found = np.full((len(passages), max(map(len, passages))), PADDING, np.int64)
    for place, ids in enumerate(passages):
        found[place, : len(ids)] = ids
    return torch.from_numpy(found)


def bundle_cosine(
    bundle: Bundle | Path,
    passages: Ids,
    model: Any,
    *,
    threads: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> CosineLoss:
    """Embed passages of token ids with the bundle through onnxruntime and with `model` in torch, and compare."""
    embedder = Embedder(bundle, threads=threads)
    found = embedder.embed_ids(passages, progress=progress).astype(np.float64)
    dense = embeddings(model, padded_passages(passages), embedder.info.pooling).double().numpy()
    losses = 0.5 * np.square(found - dense).sum(1)
    tokens = sum(map(len, passages))
    return CosineLoss(float(1 - losses.mean()), float(1 - losses.max()), float(losses.mean()), len(passages), tokens)


def evaluate_encoder(
    target: str, text: Path, *, reference: str | None, longest: int | None, count: int | None, threads: int
) -> CosineLoss:
    """The bundle TARGET on the lines of a text file, or the first `count` of them, against the dense REFERENCE.

    Raises:
        InputError: no reference or one that is no encoder, a text without lines, or tokenizers that differ.
    """
    if reference is None:
        raise InputError("An encoder is evaluated against its dense model; name that with --reference MODEL.")
    if not encoder_family(reference):
        raise InputError(f"The reference {reference} is no sentence encoder, so its embeddings cannot be compared.")
    lines = [line.strip() for line in read_text(text).splitlines() if line.strip()][:count]
    bundle = open_bundle(target)
    info = bundle.manifest.encoder
    dense = open_encoder(reference)
    if (dense.architecture.hidden_size, dense.architecture.pooling) != (info.hidden_size, info.pooling):
        raise InputError(f"The embeddings of {reference} are of another size or pooling than those of {target}.")
    passages = load_tokenizer(bundle).encode_all(lines, min(longest or info.max_context, info.max_context))
    backend = dense.tokenizer.backend_tokenizer
    for line, ids in list(zip(lines, passages, strict=True))[:32]:
        whole = backend.encode(line, add_special_tokens=True).ids
        if len(ids) == len(whole) and ids != list(whole):
            raise InputError(f"The tokenizers of {reference} and {target} differ; compare models of one tokenizer.")
    with step("Evaluating") as tick:
        return bundle_cosine(
            bundle, passages, dense.model, threads=threads, progress=lambda done: tick(done, len(passages))
        )
