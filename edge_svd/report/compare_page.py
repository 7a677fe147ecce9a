"""The page of a comparison: one HTML file that needs nothing else, no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edge_svd.report.charts import DASHES, MARKERS, NARROW, WIDE, Chart, Mark, Series, draw, swatch
from edge_svd.report.compare_table import number
from edge_svd.report.heat_map import heat_map
from edge_svd.report.palette import LIGHT, style_rules
from edge_svd.report.rank_cells import FAMILIES, rank_cells


def compare_page(found: Mapping[str, Any]) -> str:
    """The page for the content of a compare.json, as UTF-8 HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"perplexity": number}
    return environment.from_string(_file("compare_page.html.jinja")).render(
        found=found,
        name=found["model"]["name"].rstrip("/").rsplit("/", 1)[-1],
        choices=found["choices"],
        charts=[_chart(found, text, i) for i, text in enumerate(found["texts"])],
        table=_table(found),
        maps=[_map(found, choice, i) for i, choice in enumerate(found["choices"])],
        css=Markup(_file("front_page.css") + style_rules()),
    )


def _file(name: str) -> str:
    return (resources.files("edge_svd.report") / name).read_text("utf-8")


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['method']}, {row['allocation']}"


def text_chart(found: Mapping[str, Any], text: str) -> Chart:
    """Perplexity over dense against the kept ratio, a line a method and allocation."""
    rows = [row for row in found["rows"] if row["text"] == text]
    series = []
    for i, label in enumerate(dict.fromkeys(map(_label, rows))):
        own = sorted((row for row in rows if _label(row) == label), key=lambda row: row["ratio"])
        marks = tuple(
            Mark(
                row["ratio"],
                row["over_dense"],
                f"{label} at {row['ratio']:g}: perplexity {number(row['perplexity'])}, KL {row['kl']:.3f}",
            )
            for row in own
        )
        style, marker = f"t{i % len(LIGHT)}", MARKERS[i % len(MARKERS)]
        series.append(Series(label, style, marks, marker, DASHES[i // len(LIGHT) % len(DASHES)]))
    best = min(rows, key=lambda row: row["over_dense"])
    description = f"{len(series)} methods; least is {best['over_dense']:.3g} by {_label(best)} at {best['ratio']:g}."
    return Chart(text, description, "parameters kept", "perplexity over dense", tuple(series), log_y=True)


def _chart(found: Mapping[str, Any], text: Mapping[str, Any], i: int) -> dict[str, Any]:
    chart = text_chart(found, text["name"])
    return {
        "title": text["name"],
        "dense": number(text["dense_perplexity"]),
        "svg": Markup(draw(chart, WIDE, f"c{i}-wide") + draw(chart, NARROW, f"c{i}-narrow")),
        "legend": [{"name": series.name, "swatch": Markup(swatch(series))} for series in chart.series],
    }


def _table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    table: dict[tuple[str, str, float], dict[str, Any]] = {}
    for row in found["rows"]:
        key = (row["method"], row["allocation"], row["ratio"])
        table.setdefault(key, {**row, "cells": []})["cells"].append(row)
    return list(table.values())


def _map(found: Mapping[str, Any], choice: Mapping[str, Any], i: int) -> dict[str, Any]:
    title = f"{_label(choice)}, ratio {choice['ratio']:g}"
    cells = rank_cells(found["matrices"], choice["ranks"])
    return {"title": title, "svg": Markup(heat_map(cells, FAMILIES, f"Ranks of {title}", f"map-{i}"))}
