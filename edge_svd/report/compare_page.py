"""The page of a comparison: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edge_svd.files import format_size
from edge_svd.report.charts import NARROW, WIDE, draw, swatch
from edge_svd.report.compare_charts import AXES, text_chart
from edge_svd.report.compare_labels import amount, healed, key, label, number, pivoted, share
from edge_svd.report.heat_map import heat_map
from edge_svd.report.palette import style_rules
from edge_svd.report.rank_cells import FAMILIES, rank_cells


def compare_page(found: Mapping[str, Any]) -> str:
    """The page for the content of a compare.json, as UTF-8 HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"perplexity": number, "bytes": format_size, "amount": amount, "label": label}
    environment.globals |= {"share": share}
    return environment.from_string(_file("compare_page.html.jinja")).render(
        found=found,
        name=found["model"]["name"].rstrip("/").rsplit("/", 1)[-1],
        choices=found["choices"],
        charts=list(_charts(found)),
        losses=_lines(found["choices"], found["rows"]),
        tasks=_lines([row for row in found["tasks"] if row["method"] == "dense"][:1], found["tasks"])
        + _lines(found["choices"], found["tasks"]),
        task_names=list(dict.fromkeys((row["task"], row["n"]) for row in found["tasks"])),
        healed=healed(found),
        pivoted=pivoted(found),
        by_ratio=any(choice["ratio"] is not None for choice in found["choices"]),
        by_target=any(choice["target"] is not None for choice in found["choices"]),
        by_size=any(choice["size"] is not None for choice in found["choices"]),
        maps=[_map(found, choice, i) for i, choice in enumerate(found["choices"])],
        css=Markup(_file("front_page.css") + style_rules()),
    )


def _file(name: str) -> str:
    return (resources.files("edge_svd.report") / name).read_text("utf-8")


def _charts(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for i, text in enumerate(found["texts"]):
        for axis in AXES:
            chart = text_chart(found, text["name"], axis)
            if chart is not None:
                ident = f"c{i}-{axis.field}"
                yield {
                    "title": f"{text['name']}, {axis.name}",
                    "dense": number(text["dense_perplexity"]),
                    "against": axis.note,
                    "svg": Markup(draw(chart, WIDE, f"{ident}-wide") + draw(chart, NARROW, f"{ident}-narrow")),
                    "legend": [{"name": series.name, "swatch": Markup(swatch(series))} for series in chart.series],
                }


def _lines(choices: list[Any], rows: list[Any]) -> list[dict[str, Any]]:
    """Every choice with its cells, a text or task each, in their order."""
    cells: dict[Any, list[Any]] = {}
    for row in rows:
        cells.setdefault((key(row), amount_of(row)), []).append(row)
    return [{**choice, "cells": cells.get((key(choice), amount_of(choice)), [])} for choice in choices]


def amount_of(row: Mapping[str, Any]) -> tuple[float | None, int | None, float | None]:
    """What was asked for: ratio, size or target."""
    return row["ratio"], row["size"], row["target"]


def _map(found: Mapping[str, Any], choice: Mapping[str, Any], i: int) -> dict[str, Any]:
    title = f"{label(choice)}, {'' if choice['ratio'] is None else 'ratio '}{amount(choice)}"
    cells = rank_cells(found["matrices"], choice["ranks"], choice["factors"])
    return {"title": title, "svg": Markup(heat_map(cells, FAMILIES, f"Ranks of {title}", f"map-{i}"))}
