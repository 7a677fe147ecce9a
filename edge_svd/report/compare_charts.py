"""The charts of a comparison: perplexity over dense against what is kept, in parameters or in bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_svd.report.charts import DASHES, MARKERS, Chart, Mark, Series
from edge_svd.report.compare_labels import amount, label, number
from edge_svd.report.palette import LIGHT

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """What rows are drawn against: those that have `field`, at `value`; `name` labels it, `note` explains it."""

    field: str
    name: str
    note: str
    value: Callable[[Row], float]


AXES = (
    Axis("ratio", "parameters kept", "the share of parameters kept", lambda row: float(row["ratio"])),
    Axis("size", "MB", "the bytes of the whole folder in MB", lambda row: row["bytes"] / 1e6),
)


def text_chart(found: Row, text: str, axis: Axis) -> Chart | None:
    """Perplexity over dense, a line a method, allocation and healing, looking alike on every axis; None where no row
    lies on that one."""
    rows = [row for row in found["rows"] if row["text"] == text and row[axis.field] is not None]
    if not rows:
        return None
    series = []
    for i, name in enumerate(dict.fromkeys(map(label, found["rows"]))):
        marks = tuple(
            Mark(
                axis.value(row),
                row["over_dense"],
                f"{name} at {amount(row)}: perplexity {number(row['perplexity'])}, KL {row['kl']:.3f}",
            )
            for row in sorted((row for row in rows if label(row) == name), key=axis.value)
        )
        style, marker = f"t{i % len(LIGHT)}", MARKERS[i % len(MARKERS)]
        if marks:
            series.append(Series(name, style, marks, marker, DASHES[i // len(LIGHT) % len(DASHES)]))
    best = min(rows, key=lambda row: row["over_dense"])
    description = f"{len(series)} ways; least is {best['over_dense']:.3g} by {label(best)} at {amount(best)}."
    return Chart(text, description, axis.name, "perplexity over dense", tuple(series), log_y=True)
