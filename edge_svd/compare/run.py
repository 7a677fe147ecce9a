"""The rows of a comparison, each kept as soon as it is measured, so that an interrupted one continues."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.allocate import allocation
from edge_svd.calibrate.collect import inner_sites
from edge_svd.calibrate.statistics import Statistics, cache_key, extras_of
from edge_svd.compare.matrices import Decomposed
from edge_svd.compare.meter import TextMeter
from edge_svd.compare.sensitivity import TOKENS, FromLayer, Sensitivities
from edge_svd.decompose import decompose
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, cache_folder, canonical_json, read_json
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import replaced
from edge_svd.progress import step
from edge_svd.runtime.score import cut_windows
from edge_svd.runtime.text import read_text

VERSION = 1
"""Of what a kept row means; rows of another are measured again."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """Methods x allocations x ratios (parameters kept of the matrices between embedding and head) x texts."""

    methods: tuple[str, ...]
    allocations: tuple[str, ...]
    ratios: tuple[float, ...]
    texts: tuple[Path, ...]
    window: int = 512
    windows: int = 24

    def check(self) -> None:
        """InputError on an unknown name, a ratio outside (0, 1], or nothing to compare; before any work is done."""
        for name, found in (("method", self.methods), ("ratio", self.ratios), ("text", self.texts)):
            if not found:
                raise InputError(f"There is no {name} to compare; name at least one.")
        for method in self.methods:
            decompose(method)
        for name in self.allocations:
            allocation(name)
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise InputError(f"The ratio of parameters kept must be above 0 and at most 1, not {ratio:g}.")

    @property
    def extras(self) -> set[str]:
        """The statistics that its methods and allocations look at beyond the moments."""
        needs = [need for method in self.methods for need in decompose(method).needs]
        return extras_of([*needs, *(need for name in self.allocations for need in allocation(name).needs)])

    def __iter__(self) -> Iterator[tuple[str, str, float]]:
        return iter((m, a, r) for m in self.methods for a in self.allocations for r in self.ratios)


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
    """One file a choice (method, allocation, ratio) under the cache, with what is known of it by text."""

    def __init__(self, opened: OpenedModel, statistics: Statistics) -> None:
        self.identity = {"version": VERSION, "model": opened.digest, "statistics": cache_key(statistics.key)}
        self.folder = cache_folder() / "compare" / cache_key(self.identity)[:32]

    def file(self, *names: Any) -> Path:
        return self.folder / f"{hashlib.sha256(canonical_json([str(n) for n in names])).hexdigest()[:32]}.json"

    def read(self, *names: Any) -> Row:
        file = self.file(*names)
        found = read_json(file, "row of a comparison") if file.exists() else {}
        return found if isinstance(found, dict) else {}

    def write(self, row: Row, *names: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write(self.file(*names), canonical_json(row, indent=1))


def compare(opened: OpenedModel, statistics: Statistics, asked: Asked) -> Row:
    """Everything that was asked for, measured where it is not known yet.

    Raises:
        InputError: unknown names, unusable texts, statistics without what a method needs, a ratio that an
            allocation cannot meet. Failure: NaN or Inf anywhere.
    """
    asked.check()
    texts, rows = texts_of(asked, opened), Rows(opened, statistics)
    missing = [choice for choice in asked if not _complete(rows.read(*choice), texts)]
    known = rows.read("dense")
    if missing or any(text.key not in known for text in texts):
        with step("Measuring the dense model") as tick:
            meters = {}
            for done, text in enumerate(texts):
                tick(done, len(texts))
                meters[text.key] = TextMeter(
                    opened.model, opened.architecture, text.ids, window=asked.window, windows=asked.windows
                )
        rows.write(known | {key: meter.dense.perplexity for key, meter in meters.items()}, "dense")
        for method in dict.fromkeys(method for method, _, _ in missing):
            _measure(opened, statistics, rows, method, [c for c in missing if c[0] == method], texts, meters)
    return _result(opened, statistics, asked, texts, rows)


def _complete(row: Row, texts: Sequence[Text]) -> bool:
    return all(text.key in row.get("texts", {}) for text in texts)


def _measure(
    opened: OpenedModel,
    statistics: Statistics,
    rows: Rows,
    method: str,
    choices: Sequence[tuple[str, str, float]],
    texts: Sequence[Text],
    meters: dict[str, TextMeter],
) -> None:
    start = time.monotonic()
    with step(f"Decomposing by {method}") as tick:
        made = Decomposed(opened, statistics, method, tick)
    decomposed = time.monotonic() - start
    for name in dict.fromkeys(name for _, name, _ in choices):
        start = time.monotonic()
        with step(f"Allocating by {name}") as tick:
            priced = made.priced(name)
            measured = _sensitivities(opened, statistics, made, rows, tick) if name == "strs" else None
            found = {c: made.choose(name, c[2], priced, measured) for c in choices if c[1] == name}
        allocated = (time.monotonic() - start) / len(found)
        for choice, kept in found.items():
            row = rows.read(*choice) or {
                "parameters": kept.parameters,
                "budget": kept.budget,
                "ranks": kept.ranks,
                "seconds": round(decomposed + allocated, 1),
                "texts": {},
            }
            with step(f"Measuring {method}, {name}, {choice[2]:g}") as tick:
                with replaced(opened.model, made.weights(kept)):
                    for done, text in enumerate(texts):
                        tick(done, len(texts))
                        if text.key not in row["texts"]:
                            loss = meters[text.key].measure()
                            row["texts"][text.key] = {"perplexity": loss.perplexity, "kl": loss.kl}
                            rows.write(row, *choice)


def _sensitivities(
    opened: OpenedModel, statistics: Statistics, made: Decomposed, rows: Rows, tick: Any
) -> Sensitivities:
    ids = statistics.held_out()

    def decoder() -> FromLayer:
        return FromLayer(opened.model, opened.architecture, ids[: max(1, TOKENS // ids.shape[1])])

    rows.folder.mkdir(parents=True, exist_ok=True)
    return Sensitivities(
        made.sites,
        lambda site, rank: made.factorizations[site.name].truncated(rank).float(),
        decoder,
        rows.file("sensitivities", made.method),
        tick,
    )


def _result(opened: OpenedModel, statistics: Statistics, asked: Asked, texts: Sequence[Text], rows: Rows) -> Row:
    dense = rows.read("dense")
    sites = inner_sites(opened.sites)
    total = sum(site.shape[0] * site.shape[1] for site in sites)
    choices, table = [], []
    for method, name, ratio in asked:
        row = rows.read(method, name, ratio)
        choice = {"method": method, "allocation": name, "ratio": ratio, "parameters": row["parameters"]}
        choices.append(choice | {"ranks": row["ranks"], "seconds": row["seconds"]})
        for text in texts:
            found = row["texts"][text.key]
            over = found["perplexity"] / dense[text.key]
            table.append(choice | {"bytes": 2 * row["parameters"], "text": text.name, **found, "over_dense": over})
    return {
        "model": {"name": opened.name, "digest": opened.digest, "parameters": total},
        "matrices": [{"name": s.name, "type": s.type, "layer": s.layer, "shape": list(s.shape)} for s in sites],
        "calibration": dict(statistics.key),
        "window": asked.window,
        "windows": asked.windows,
        "texts": [{"name": text.name, "dense_perplexity": dense[text.key]} for text in texts],
        "rows": table,
        "choices": choices,
    }
