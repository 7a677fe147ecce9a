"""Sentence embeddings of a list of texts through onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.runtime.bundle import Bundle, open_bundle
from edge_svd.runtime.errors import Failure, InputError
from edge_svd.runtime.onnx_session import open_onnx
from edge_svd.runtime.schema import MODEL_NAME
from edge_svd.runtime.tokenizer import load_tokenizer

BATCH = 16
"""Texts of like length computed together: more of them gain nothing on a processor of two cores."""

Embeddings = np.ndarray[Any, np.dtype[np.float32]]


class Embedder:
    """A loaded sentence encoder."""

    def __init__(self, bundle: Bundle | Path | str, *, threads: int | None = None, spinning: bool = True) -> None:
        """Load model.onnx; InputError if the bundle is no sentence encoder, BundleError if it is not what it claims."""
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        self.info = self.bundle.manifest.encoder
        self._tokenizer = load_tokenizer(self.bundle)
        self._session = open_onnx(self.bundle, MODEL_NAME, threads=threads, spinning=spinning, arena=True)

    def embed(
        self, texts: Sequence[str], *, batch: int = BATCH, progress: Callable[[int], None] = lambda done: None
    ) -> Embeddings:
        """Float32 [len(texts), hidden_size], rows of length one in the order of the texts.

        Texts beyond the longest input are cut, as sentence-transformers does. InputError on a text that is no valid
        Unicode or a string in place of a list; Failure if an embedding is not finite.
        """
        if isinstance(texts, str):
            raise InputError('embed takes a list of texts; write embed(["a text"]).')
        return self.embed_ids(self._tokenizer.encode_all(texts, self.info.max_context), batch=batch, progress=progress)

    def embed_ids(
        self,
        passages: Sequence[Sequence[int]],
        *,
        batch: int = BATCH,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Embeddings:
        """The same of token ids; InputError on a passage that is empty or too long, or an id outside the vocabulary."""
        if batch < 1:
            raise InputError(f"A batch must hold at least 1 text, not {batch}.")
        info = self.info
        for ids in passages:
            if not 0 < len(ids) <= info.max_context:
                raise InputError(f"A passage must have between 1 and {info.max_context} tokens, not {len(ids)}.")
            if min(ids) < 0 or max(ids) >= info.vocab_size:
                raise InputError(f"A token id is outside the model's vocabulary of {info.vocab_size}.")
        found = np.empty((len(passages), info.hidden_size), np.float32)
        # Of like length together, so that little padding is computed.
        order = sorted(range(len(passages)), key=lambda number: len(passages[number]))
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = len(passages[rows[-1]])
            tokens = np.full((len(rows), width), info.pad_token_id, np.int64)
            mask = np.zeros((len(rows), width), np.int64)
            for place, number in enumerate(rows):
                count = len(passages[number])
                tokens[place, :count] = passages[number]
                mask[place, :count] = 1
            feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(tokens)}
            try:
                found[rows] = self._session.run(["sentence_embedding"], feeds)[0]
            except Exception as error:
                message = str(error).replace("\n", " ")[:300]
                raise Failure(f"onnxruntime failed while embedding ({message}).") from None
            progress(start + len(rows))
        if not np.isfinite(found).all():
            raise Failure("An embedding is not finite; the bundle's weights are unusable.")
        return found
