"""`eval` for anything: a bundle, a checkpoint or a model, with or without a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_svd.checkpoint import MANIFEST
from edge_svd.compute_device import compute_device, placed
from edge_svd.errors import InputError
from edge_svd.evaluate.text_loss import TextLoss, bundle_loss, model_loss
from edge_svd.layouts import layout_of
from edge_svd.models import open_model
from edge_svd.progress import step
from edge_svd.runtime.bundle import is_bundle, open_bundle
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import load_tokenizer


def evaluate_target(
    target: str, text: Path, *, window: int, windows: int, reference: str | None = None, threads: int = 2
) -> TextLoss:
    """Perplexity of TARGET on a text file, and KL to the reference model where one is given.

    Raises:
        InputError: target, reference or text cannot be used, the two vocabularies differ, or a window is longer than
            a table of learned positions.
    """
    content = read_text(text)
    dense = open_model(reference) if reference is not None else None
    reference_model: Any = placed(dense.model) if dense is not None else None
    _within_positions(reference_model, window)
    with step("Evaluating") as tick:
        if is_bundle(Path(target)):
            bundle = open_bundle(target)
            ids = load_tokenizer(bundle).encode(content)
            _same_vocabulary(dense, bundle.manifest.model.vocab_size)
            return bundle_loss(
                bundle,
                ids,
                window=window,
                windows=windows,
                reference=reference_model,
                threads=threads,
                progress=lambda done: tick(done, windows),
            )
        model, tokenizer = torch_target(target)
        _within_positions(model, window)
        ids = tokenizer(content, add_special_tokens=False, verbose=False).input_ids
        _same_vocabulary(dense, model.config.vocab_size)
        return model_loss(
            model,
            ids,
            window=window,
            windows=windows,
            reference=reference_model,
            progress=lambda done: tick(done, windows),
        )


def torch_target(target: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a compressed checkpoint's folder or of anything that `models.open_model` opens."""
    if (Path(target) / MANIFEST).exists():
        from transformers import AutoTokenizer

        from edge_svd.loading import load

        model = load(target, components=compute_device().type == "cuda")
        return placed(model), AutoTokenizer.from_pretrained(Path(target) / "companions", local_files_only=True)
    opened = open_model(target)
    return placed(opened.model), opened.tokenizer


def _within_positions(model: Any, window: int) -> None:
    if model is not None and layout_of(model.config.model_type).positions:
        limit = model.config.max_position_embeddings
        if window > limit:
            raise InputError(f"A window of {window} tokens is too long: this model has positions for {limit}.")


def _same_vocabulary(dense: Any, size: int) -> None:
    if dense is not None and dense.architecture.vocab_size != size:
        raise InputError(
            f"The reference has {dense.architecture.vocab_size} tokens and the target {size}; KL needs one vocabulary."
        )
