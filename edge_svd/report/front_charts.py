"""The charts of a front: size against quality, prediction against measurement, speed and memory against size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_svd.files import format_size
from edge_svd.report.charts import DASHES, MARKERS, Chart, Mark, Series
from edge_svd.report.front_data import curves_of, spent

LEAST = 1e-6
"""Nats per token below which a KL is drawn as this: a logarithmic axis has no zero."""

MEGABYTE = 1e6

AXES = {"file_bytes": "bundle, MB (everything in the folder)", "peak_rss_bytes": "peak RSS, MB"}


def front_chart(front: Mapping[str, Any], order: Sequence[str]) -> Chart | None:
    """Bytes of the bundle against KL, the single techniques first so that the front lies above; None without a plan."""
    key, series = spent(front), []
    for family, points in curves_of(front):
        number = list(order).index(family)
        found = {point[key]: point["kl"] for point in points if point["kl"] is not None}
        marks = tuple(_mark(size, kl, f"{family} alone") for size, kl in sorted(found.items()))
        if marks:
            style, marker = f"t{number % 8}", MARKERS[(number + 1) % len(MARKERS)]
            series.append(Series(f"{family} alone, predicted", style, marks, marker, DASHES[1 + number % 7]))
    rows = [row for row in front["rows"] if row["reachable"]]
    found = {row["predicted"][key]: row["predicted"]["kl"] for row in rows}
    if not found:
        return None
    marks = tuple(_mark(size, kl, "all techniques, predicted") for size, kl in sorted(found.items()))
    series.append(Series("all techniques, predicted", "front", marks, strong=True))
    done = {row["measured"][key]: row["measured"]["kl"] for row in rows if row["measured"] and row["measured"][key]}
    if done:
        marks = tuple(_mark(size, kl, "all techniques, measured") for size, kl in sorted(done.items()))
        series.append(Series("all techniques, measured", "front", marks, "diamond", "3 4", hollow=True, strong=True))
    best, worst = rows[-1]["predicted"], rows[0]["predicted"]
    description = (
        f"From {format_size(worst[key])} with a predicted KL of {worst['kl']:.3g} nats per token to "
        f"{format_size(best[key])} with {best['kl']:.3g}. The tables below hold all numbers, those of "
        "each technique alone too."
    )
    return Chart(
        f"{'Size' if key == 'file_bytes' else 'Memory'} against divergence from the dense model",
        description,
        AXES[key],
        "KL to dense, nats per token",
        tuple(series),
        log_y=True,
    )


def prediction_chart(measured: Sequence[Mapping[str, Any]]) -> Chart:
    """Predicted against measured KL of every measured row, on and beside the diagonal."""
    marks = tuple(
        Mark(
            max(row["predicted"]["kl"], LEAST),
            max(row["measured"]["kl"], LEAST),
            f"{row['label']}: predicted {row['predicted']['kl']:.4f}, measured {row['measured']['kl']:.4f}",
            row["label"],
        )
        for row in measured
    )
    description = "; ".join(mark.tip for mark in marks) + ". On the diagonal both are equal."
    return Chart(
        "KL: predicted against measured",
        description,
        "predicted, nats per token",
        "measured, nats per token",
        (Series("targets", "front", marks, line=False, strong=True),),
        log_x=True,
        log_y=True,
        diagonal=True,
    )


def bench_charts(measured: Sequence[Mapping[str, Any]]) -> list[tuple[Chart, str]]:
    """Decode speed and peak memory against size, each with an identifier, where they were measured."""
    found = []
    for key, scale, title, label, form in (
        ("decode_tokens_per_s", 1.0, "Decode speed", "tokens per second", "{:.1f} tokens/s"),
        ("peak_rss_bytes", MEGABYTE, "Peak memory", "peak RSS, MB", "{:.1f} MB"),
    ):
        rows = sorted((r for r in measured if r["measured"].get(key)), key=lambda r: int(r["measured"]["file_bytes"]))
        marks = tuple(
            Mark(
                row["measured"]["file_bytes"] / MEGABYTE,
                row["measured"][key] / scale,
                f"{row['label']}: " + form.format(row["measured"][key] / scale),
                row["label"],
            )
            for row in rows
        )
        if marks:
            series = Series("measured", "front", marks, strong=True)
            description = "; ".join(mark.tip for mark in marks)
            chart = Chart(f"{title} against size", description, "bundle, MB", label, (series,), zero_y=True)
            found.append((chart, key.replace("_", "-")))
    return found


def _mark(size: int, kl: float, what: str) -> Mark:
    return Mark(size / MEGABYTE, max(kl, LEAST), f"{what}: {format_size(size)}, KL {kl:.4f} nats per token")
