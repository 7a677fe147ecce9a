"""The rows of a comparison on disk, each kept as soon as it is measured."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edge_svd.calibrate.statistics import Statistics, cache_key
from edge_svd.compare.asked import Cell
from edge_svd.files import atomic_write, cache_folder, canonical_json, read_json
from edge_svd.models import OpenedModel

VERSION = 2
"""Of what a kept row means; rows of another are measured again."""

Row = dict[str, Any]


class Rows:
    """One file a cell under the cache, with what is known of it by text and by task."""

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
