"""What a plan chose where: layer by matrix type, a cell a matrix, coloured by technique and paler for fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from edge_svd.files import format_size
from edge_svd.report.charts import LETTER
from edge_svd.report.front_data import format_of
from edge_svd.report.palette import tint

ACROSS = 32
"""Layers side by side; deeper models continue below."""


@dataclass(frozen=True)
class Cell:
    """One matrix of a plan; `family` as `--candidates` calls it, `kind` in full, `bits` per weight, `loss` predicted in
    nats per token."""

    name: str
    type: str
    layer: int
    shape: tuple[int, int]
    family: str
    kind: str
    rank: int
    bits: float
    bytes: int
    loss: float

    @property
    def tip(self) -> str:
        rank = f", rank {self.rank}" if self.rank else ""
        return (
            f"{self.name} ({self.shape[0]} x {self.shape[1]}): {self.kind}{rank}, {self.bits:.2f} bits per weight, "
            f"{format_size(self.bytes)}, predicted loss {self.loss:.2g}"
        )


def cells(matrices: Sequence[Mapping[str, Any]], plan: Mapping[str, Any]) -> list[Cell]:
    """Every matrix with what the plan chose for it, in forward order."""
    found = []
    for matrix in matrices:
        entry = plan["sites"][matrix["name"]]
        fmt = format_of(entry)
        rows, columns = matrix["shape"]
        found.append(
            Cell(
                matrix["name"],
                matrix["type"],
                matrix["layer"],
                (rows, columns),
                fmt.family,
                _kind(entry),
                fmt.rank,
                8 * entry["bytes"] / (rows * columns),
                entry["bytes"],
                entry["loss"],
            )
        )
    return found


def _kind(entry: Mapping[str, Any]) -> str:
    """The kind of a format with the numbers that tell two of a kind apart besides their ranks: `block, bits 4`."""
    known = ("kind", "k4", "k8", "k16", "bytes", "loss")
    more = {key: value for key, value in sorted(entry.items()) if key not in known and isinstance(value, int | str)}
    return ", ".join([entry["kind"], *(f"{key} {value}" for key, value in more.items())])


def letters(families: Sequence[str]) -> dict[str, str]:
    """A letter for every family, its first one that is still free."""
    taken: dict[str, str] = {}
    for family in families:
        free = [c.upper() for c in family if c.isalpha() and c.upper() not in taken.values()]
        taken[family] = free[0] if free else "?"
    return taken


def heat_map(found: Sequence[Cell], families: Sequence[str], title: str, ident: str) -> str:
    """Two <svg>: layers across for wide screens, layers down for narrow ones. `families` order the colours."""
    types = list(dict.fromkeys(cell.type for cell in found if cell.layer >= 0))
    layers = sorted({cell.layer for cell in found if cell.layer >= 0})
    tables = [cell for cell in found if cell.layer < 0]
    painter = _Painter(families)
    by_place = {(cell.layer, cell.type): cell for cell in found}
    description = _description(found)
    wide = _wide(painter, by_place, types, layers, tables)
    narrow = _narrow(painter, by_place, types, layers, tables)
    return "".join(
        f'<svg class="chart heat {css}" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-labelledby="{ident}-{css}-t {ident}-{css}-d"><title id="{ident}-{css}-t">{escape(title)}</title>'
        f'<desc id="{ident}-{css}-d">{escape(description)}</desc>{body}</svg>'
        for css, (width, height, body) in (("wide", wide), ("narrow", narrow))
    )


class _Painter:
    def __init__(self, families: Sequence[str]) -> None:
        self.number = {family: i for i, family in enumerate(families)}
        self.letter = letters(families)

    def __call__(self, cell: Cell, x: float, y: float, width: float, height: float, text: str = "") -> str:
        fill, ink = tint(self.number[cell.family], cell.bits)
        label = text or (f"{self.letter[cell.family]}{cell.rank}" if cell.rank else f"{cell.bits:.0f}")
        size = min(12 if text else 11.5, height * 0.55, (width - 5) / (len(label) * LETTER))
        # Text too small to read only disturbs; the table below has the numbers.
        shown = (
            f'<text x="{x + width / 2:.1f}" y="{y + height / 2:.1f}" dy=".35em" text-anchor="middle" '
            f'style="font-size:{size:.1f}px;fill:{ink}">{escape(label)}</text>'
            if size >= 7
            else ""
        )
        return (
            f'<g><title>{escape(cell.tip)}</title><rect x="{x:.1f}" y="{y:.1f}" width="{width - 1.5:.1f}" '
            f'height="{height - 1.5:.1f}" rx="2" fill="{fill}"/>{shown}</g>'
        )


Places = Mapping[tuple[int, str], Cell]


def _wide(
    paint: _Painter, places: Places, types: Sequence[str], layers: Sequence[int], tables: Sequence[Cell]
) -> tuple[int, float, str]:
    total, left, height = 960, 92, 27
    parts, y = [], 4.0
    for cell in tables:
        parts.append(_text(left - 8, y + height / 2, cell.type, "end"))
        parts.append(paint(cell, left, y, total - left, height, _table_label(cell)))
        y += height
    for start in range(0, len(layers), ACROSS):
        part = layers[start : start + ACROSS]
        width = (total - left) / min(len(layers), ACROSS) if len(layers) > 3 else 200
        y += 8
        for kind in types:
            parts.append(_text(left - 8, y + height / 2, kind, "end"))
            for i, layer in enumerate(part):
                if (layer, kind) in places:
                    parts.append(paint(places[layer, kind], left + i * width, y, width, height))
            y += height
        every = 1 if len(part) <= 16 else 2
        for i, layer in enumerate(part):
            if i % every == 0:
                parts.append(_text(left + (i + 0.5) * width, y + 10, str(layer), "middle"))
        y += 22
    parts.append(_text((left + total) / 2, y + 8, "layer", "middle"))
    return total, y + 20, "".join(parts)


def _narrow(
    paint: _Painter, places: Places, types: Sequence[str], layers: Sequence[int], tables: Sequence[Cell]
) -> tuple[int, float, str]:
    total, left, height = 380, 34, 21
    parts, y = [], 2.0
    for cell in tables:
        parts.append(paint(cell, left, y, total - left, height + 3, f"{cell.type}: {_table_label(cell)}"))
        y += height + 6
    width = (total - left) / max(len(types), 1)
    y += 16
    for i, kind in enumerate(types):
        parts.append(_text(left + (i + 0.5) * width, y - 8, kind, "middle"))
    for layer in layers:
        parts.append(_text(left - 8, y + height / 2, str(layer), "end"))
        for i, kind in enumerate(types):
            if (layer, kind) in places:
                parts.append(paint(places[layer, kind], left + i * width, y, width, height))
        y += height
    return total, y + 4, "".join(parts)


def _table_label(cell: Cell) -> str:
    rank = f", rank {cell.rank}" if cell.rank else ""
    return f"{cell.kind}{rank}, {cell.bits:.1f} bits"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" dy=".35em" text-anchor="{anchor}">{escape(text)}</text>'


def _description(found: Sequence[Cell]) -> str:
    counts: dict[str, int] = {}
    for cell in found:
        counts[cell.kind] = counts.get(cell.kind, 0) + 1
    return ", ".join(f"{count} matrices {kind}" for kind, count in counts.items()) + "; the table below lists all."
