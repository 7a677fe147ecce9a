"""A comparison: what is not known yet is made and measured, method by method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_svd.calibrate.collect import inner_sites
from edge_svd.calibrate.run import split
from edge_svd.calibrate.statistics import Statistics
from edge_svd.compare.asked import Asked, Cell
from edge_svd.compare.matrices import Choice, Decomposed
from edge_svd.compare.meter import TextMeter
from edge_svd.compare.rows import Row, Rows, Text, complete, texts_of
from edge_svd.compare.sensitivity import TOKENS, FromLayer, Sensitivities
from edge_svd.factored import Factors, factored
from edge_svd.heal import NONE, Patient, heal
from edge_svd.models import OpenedModel
from edge_svd.planner.held_out import HeldOutKl
from edge_svd.progress import step

DENSE = "dense"


def compare(
    opened: OpenedModel,
    statistics: Statistics,
    asked: Asked,
    healing_windows: Callable[[], torch.Tensor] | None = None,
) -> Row:
    """Everything that was asked for, measured where it is not known yet.

    healing_windows: gives the text to heal on, int64 [count, length], one window in eight of it held out to see whether
    that helps; asked for only where something is healed, and needed there.

    Raises:
        InputError: unknown names, unusable texts, statistics without what a method needs, a ratio that an
            allocation cannot meet. Failure: NaN or Inf anywhere.
    """
    asked.check()
    texts, rows = texts_of(asked, opened), Rows(opened, statistics)
    missing = [cell for cell in asked if not complete(rows.of(cell), texts)]
    known = rows.read(DENSE)
    if missing or any(text.key not in known for text in texts):
        with step("Measuring the dense model") as tick:
            meters = {}
            for done, text in enumerate(texts):
                tick(done, len(texts))
                meters[text.key] = TextMeter(
                    opened.model, opened.architecture, text.ids, window=asked.window, windows=asked.windows
                )
        rows.write(known | {key: meter.dense.perplexity for key, meter in meters.items()}, DENSE)
        work = _Work(opened, statistics, rows, texts, meters, _Healer(opened, statistics, healing_windows))
        for method in dict.fromkeys(cell.method for cell in missing):
            work.measure(method, [cell for cell in missing if cell.method == method])
    return _result(opened, statistics, asked, texts, rows)


class _Healer:
    """Heals factors on text that is taken when something is healed for the first time."""

    def __init__(self, opened: OpenedModel, statistics: Statistics, windows: Callable[[], torch.Tensor] | None) -> None:
        self.opened, self.statistics, self.windows = opened, statistics, windows
        self._made: tuple[Patient, HeldOutKl] | None = None

    def __call__(self, name: str, factors: dict[str, Factors], title: str) -> tuple[dict[str, Factors], list[Any]]:
        """Healed factors, and what every step cost and gained."""
        if self._made is None:
            assert self.windows is not None
            model, architecture, windows = self.opened.model, self.opened.architecture, self.windows()
            seen, held = split(len(windows))
            patient = Patient(model, architecture, windows[seen], int(self.statistics.key["seed"]))
            self._made = patient, HeldOutKl(model, windows[held], architecture)
        patient, meter = self._made
        with step(f"Healing {title}") as tick:
            found = heal(name, patient, factors, meter, tick)
        return found.factors, found.steps


@dataclass(frozen=True)
class _Work:
    """What measuring a row takes."""

    opened: OpenedModel
    statistics: Statistics
    rows: Rows
    texts: Sequence[Text]
    meters: dict[str, TextMeter]
    healer: _Healer

    def measure(self, method: str, cells: Sequence[Cell]) -> None:
        """The rows of one method."""
        start = time.monotonic()
        with step(f"Decomposing by {method}") as tick:
            made = Decomposed(self.opened, self.statistics, method, tick)
        decomposed = time.monotonic() - start
        for name in dict.fromkeys(cell.allocation for cell in cells):
            start = time.monotonic()
            own = [cell for cell in cells if cell.allocation == name]
            ratios = dict.fromkeys(cell.ratio for cell in own)
            with step(f"Allocating by {name}") as tick:
                priced = made.priced(name)
                measured = self._sensitivities(made, tick) if name == "strs" else None
                chosen = {ratio: made.choose(name, ratio, priced, measured) for ratio in ratios}
            seconds = decomposed + (time.monotonic() - start) / len(chosen)
            for cell in own:
                self._row(cell, made, chosen[cell.ratio], seconds)

    def _row(self, cell: Cell, made: Decomposed, kept: Choice, seconds: float) -> None:
        title = f"{cell.method}, {cell.allocation}, {cell.ratio:g}"
        row = self.rows.of(cell) or {
            "parameters": kept.parameters,
            "budget": kept.budget,
            "ranks": kept.ranks,
            "seconds": round(seconds, 1),
            "added": {name: found.added for name, found in made.factorizations.items() if found.added > 0},
            "texts": {},
        }
        factors = made.factors(kept)
        if cell.heal != NONE:
            factors, row["healing"] = self.healer(cell.heal, factors, title)
        with step(f"Measuring {title}") as tick, factored(self.opened.model, factors):
            for done, text in enumerate(self.texts):
                tick(done, len(self.texts))
                if text.key not in row["texts"]:
                    loss = self.meters[text.key].measure()
                    row["texts"][text.key] = {"perplexity": loss.perplexity, "kl": loss.kl}
                    self.rows.write(row, cell.names)

    def _sensitivities(self, made: Decomposed, tick: Any) -> Sensitivities:
        ids = self.statistics.held_out()

        def decoder() -> FromLayer:
            return FromLayer(self.opened.model, self.opened.architecture, ids[: max(1, TOKENS // ids.shape[1])])

        self.rows.folder.mkdir(parents=True, exist_ok=True)
        return Sensitivities(
            made.sites,
            lambda site, rank: made.factorizations[site.name].truncated(rank).float(),
            decoder,
            self.rows.file(["sensitivities", made.method]),
            tick,
        )


def _result(opened: OpenedModel, statistics: Statistics, asked: Asked, texts: Sequence[Text], rows: Rows) -> Row:
    dense = rows.read(DENSE)
    sites = inner_sites(opened.sites)
    total = sum(site.shape[0] * site.shape[1] for site in sites)
    choices, table = [], []
    for cell in asked:
        row = rows.of(cell)
        choice = cell.names | {"parameters": row["parameters"]}
        more = {"ranks": row["ranks"], "seconds": row["seconds"], "added": row["added"]}
        choices.append(choice | more | {"healing": row.get("healing", [])})
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
