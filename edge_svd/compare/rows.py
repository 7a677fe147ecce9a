"""The rows of a comparison on disk, each kept as soon as it is measured, and the texts that they are measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.compare.asked import Asked, Cell
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, cache_folder, canonical_json, read_json
from edge_svd.models import OpenedModel
from edge_svd.runtime.score import cut_windows
from edge_svd.runtime.text import read_text

VERSION = 2
"""Of what a kept row means; rows of another are measured again."""

Row = dict[str, Any]


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


class Rows:
    """One file a cell under the cache, with what is known of it by text."""

    def __init__(self, opened: OpenedModel, statistics: Statistics) -> None:
        self.identity = {"version": VERSION, "model": opened.digest, "statistics": cache_key(statistics.key)}
        self.folder = cache_folder() / "compare" / cache_key(self.identity)[:32]

    def file(self, names: Any) -> Path:
        """Where what has these names is kept."""
        return self.folder / f"{hashlib.sha256(canonical_json(names)).hexdigest()[:32]}.json"

    def of(self, cell: Cell) -> Row:
        """What is known of a cell; empty where nothing is."""
        return self.read(cell.names)

    def read(self, names: Any) -> Row:
        file = self.file(names)
        found = read_json(file, "row of a comparison") if file.exists() else {}
        return found if isinstance(found, dict) else {}

    def write(self, row: Row, names: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.file(names), canonical_json(row, indent=1))


def complete(row: Row, texts: Sequence[Text]) -> bool:
    """Whether a row holds every text."""
    return all(text.key in row.get("texts", {}) for text in texts)
