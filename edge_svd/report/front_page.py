"""The page of a front: one HTML file that needs nothing else, no network, and no script to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from edge_svd.files import format_size
from edge_svd.report.charts import NARROW, SMALL, WIDE, Chart, Series, draw, swatch
from edge_svd.report.front_charts import bench_charts, front_chart, prediction_chart
from edge_svd.report.front_data import best_alone, curves_of, family_order, spent
from edge_svd.report.heat_map import Cell, cells, heat_map, letters
from edge_svd.report.palette import style_rules, tint

TEMPLATE = "front_page.html.jinja"


def front_page(front: Mapping[str, Any]) -> str:
    """The page for the content of a front.json, as UTF-8 HTML."""
    order = family_order(front)
    key = spent(front)
    main = front_chart(front, order)
    measured = [row for row in front["rows"] if row["reachable"] and row["measured"]]
    small: list[tuple[Chart, str]] = []
    if measured:
        small = [(prediction_chart(measured), "predicted"), *bench_charts(measured)]
    charts = {
        "front": Markup(draw(main, WIDE, "front-wide") + draw(main, NARROW, "front-narrow")) if main else None,
        "legend": [_legend_entry(series) for series in main.series] if main else [],
        "small": [{"title": chart.title, "svg": Markup(draw(chart, SMALL, ident))} for chart, ident in small],
    }
    reachable = [row for row in front["rows"] if row["reachable"]]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": format_size, "fixed": _fixed, "percent": _percent}
    return environment.from_string(_file(TEMPLATE)).render(
        front=front,
        name=front["model"]["name"].rstrip("/").rsplit("/", 1)[-1],
        rows=[_row(front, row) for row in front["rows"]],
        unreachable=[row for row in front["rows"] if not row["reachable"]],
        measured=bool(measured),
        memory=key == "peak_rss_bytes",
        foreseen=any(row["predicted"]["peak_rss_bytes"] for row in reachable),
        perplexity=front["dense"]["perplexity"] if front["dense"] else None,
        charts=charts,
        curves=_curve_table(front),
        plans=[_plan(front, row, order) for row in reachable],
        css=Markup(_file("front_page.css") + style_rules()),
        script=Markup(_file("front_page.js")),
    )


def _file(name: str) -> str:
    return (resources.files("edge_svd.report") / name).read_text("utf-8")


def _fixed(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:+.{digits}%}"


def _legend_entry(series: Series) -> dict[str, Any]:
    return {"name": series.name, "swatch": Markup(swatch(series))}


def _row(front: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the table of numbers."""
    alone = best_alone(front, row)
    measured = (row["measured"] or {}) if row["reachable"] else {}
    predicted = row["predicted"]["kl"] if row["reachable"] else None
    perplexity, dense = measured.get("perplexity"), front["dense"]
    return {
        "label": row["label"],
        "reachable": row["reachable"],
        "bytes": row["predicted"]["file_bytes"] if row["reachable"] else None,
        "predicted": row["predicted"] if row["reachable"] else None,
        "measured": measured,
        "ratio": measured["kl"] / predicted if measured and predicted else None,
        "over": perplexity / dense["perplexity"] - 1 if perplexity and dense else None,
        "agreement": row["proof"]["top1_agreement"] if row["reachable"] and row["proof"] else None,
        "alone": alone,
    }


def _curve_table(front: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Predicted KL of each technique alone at the targets of the front, None where it does not reach one."""
    targets = [row["target"] for row in front["rows"]]
    table = []
    for family, points in curves_of(front):
        by_target = {point["target"]["value"]: point["kl"] for point in points}
        table.append({"family": family, "kls": [by_target.get(target["value"]) for target in targets]})
    return table


def _plan(front: Mapping[str, Any], row: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """The panel of one target: heat map, its legend, and the same as tables."""
    found = cells(front["matrices"], row["plan"])
    used = [family for family in order if any(cell.family == family for cell in found)]
    letter = letters(order)
    ident = "plan-" + row["label"]
    title = f"What was chosen where for {row['label']}: layer by matrix type"
    return {
        "id": ident,
        "label": row["label"],
        "plan": row["plan"],
        "heat": Markup(heat_map(found, order, title, ident)),
        "legend": [_key(family, order, letter[family], [c for c in found if c.family == family]) for family in used],
        "types": [
            _type_row(kind, [c for c in found if c.type == kind]) for kind in dict.fromkeys(c.type for c in found)
        ],
        "loss": sum(cell.loss for cell in found) or 1.0,
        "cells": found,
    }


def _key(family: str, order: Sequence[str], letter: str, found: Sequence[Cell]) -> dict[str, Any]:
    """A legend entry; the scale of tints between the fewest and the most bits that the plan has of it."""
    low, high = min(cell.bits for cell in found), max(cell.bits for cell in found)
    number = list(order).index(family)
    return {
        "family": family,
        "letter": letter if any(cell.rank for cell in found) else "",
        "count": len(found),
        "low": low,
        "high": high,
        "colours": (tint(number, low)[0], tint(number, high)[0]),
    }


def _type_row(kind: str, found: Sequence[Cell]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for cell in found:
        counts[cell.kind] = counts.get(cell.kind, 0) + 1
    ranks = [cell.rank for cell in found if cell.rank]
    weights = sum(cell.shape[0] * cell.shape[1] for cell in found)
    return {
        "type": kind,
        "formats": ", ".join(f"{count} {name}" for name, count in counts.items()),
        "rank": sum(ranks) / len(ranks) if ranks else None,
        "bits": 8 * sum(cell.bytes for cell in found) / weights,
        "bytes": sum(cell.bytes for cell in found),
        "loss": sum(cell.loss for cell in found),
    }
