"""The texts that a comparison measures on, cut into windows of a model's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_svd.compare.asked import Asked
from edge_svd.errors import InputError
from edge_svd.models import OpenedModel
from edge_svd.runtime.score import cut_windows
from edge_svd.runtime.text import read_text


@dataclass(frozen=True)
class Text:
    """A text cut into windows; `key` says which tokens are scored."""

    name: str
    key: str
    ids: Sequence[int]


def texts_of(asked: Asked, opened: OpenedModel) -> list[Text]:
    """The texts as this model's tokens; InputError on one that cannot be read or is shorter than one window."""
    found = []
    for path in asked.texts:
        ids = opened.tokenizer(read_text(path), add_special_tokens=False, verbose=False).input_ids
        cut = cut_windows(ids, asked.window, asked.windows)
        digest = hashlib.sha256(f"{cut.shape}".encode() + np.ascontiguousarray(cut).tobytes()).hexdigest()
        found.append(Text(path.name.removesuffix(".gz").removesuffix(".txt"), digest[:32], cut.reshape(-1).tolist()))
    names = [text.name for text in found]
    if len(set(names)) < len(names):
        raise InputError("Two texts of a comparison have the same name; rename one.")
    return found
