"""A front as a table on the terminal: one row a target, prediction beside measurement, the best single technique."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_svd.files import format_size
from edge_svd.report.front_data import best_alone

WIDTH = 120
MISSING = "-"


def front_table(front: Mapping[str, Any], folder: Path | None = None) -> str:
    """The table, the refusals behind it, and where the page lies; `~` marks what is predicted and was not measured."""
    text = bool(front["dense"])
    columns = ["target", "size", "KL predicted", "KL measured"]
    columns += ["perplexity", "over dense"] if text else []
    columns += ["decode tok/s", "peak RSS", "best single technique"]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in front["rows"]:
        table.add_row(row["label"], *_cells(front, row, text))
    # As wide as it needs to be: what reads a pipe wants rows, not folded cells.
    out = Console(file=io.StringIO(), width=max(WIDTH, Console(stderr=True).width), color_system=None)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    lines += [f"{row['label']}: {row['refusal']['message']}" for row in front["rows"] if not row["reachable"]]
    if folder is not None:
        lines += ["", f"{folder / 'index.html'} shows all of it."]
    return "\n".join(lines)


def _cells(front: Mapping[str, Any], row: Mapping[str, Any], text: bool) -> list[str]:
    alone = best_alone(front, row)
    single = f"{alone.family}: KL {alone.kl:.4f}" if alone is not None else MISSING
    if not row["reachable"]:
        return ["not reachable", *[MISSING] * (6 if text else 4), single]
    measured = row["measured"] or {}
    cells = [format_size(row["predicted"]["file_bytes"]), _number(row["predicted"]["kl"], ".4f")]
    cells.append(_number(measured.get("kl"), ".4f"))
    if text:
        perplexity = measured.get("perplexity")
        over = None if perplexity is None else perplexity / front["dense"]["perplexity"] - 1
        cells += [_number(perplexity, ".2f"), _number(over, "+.1%")]
    for key, said in (("decode_tokens_per_s", "{:.1f}".format), ("peak_rss_bytes", format_size)):
        known, foreseen = measured.get(key), row["predicted"][key]
        cells.append(said(known) if known is not None else MISSING if foreseen is None else f"~{said(foreseen)}")
    return [*cells, single]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
