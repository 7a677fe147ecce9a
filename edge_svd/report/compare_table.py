"""A comparison on the terminal: a line a method and allocation, a column a ratio and text."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def compare_table(found: Mapping[str, Any], folder: Path | None = None) -> str:
    """Perplexity and, in brackets, KL to the dense model in nats per token."""
    columns = list(dict.fromkeys((row["ratio"], row["text"]) for row in found["rows"]))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method")
    table.add_column("allocation")
    for ratio, text in columns:
        table.add_column(f"{text} {ratio:g}", justify="right")
    dense = {text["name"]: text["dense_perplexity"] for text in found["texts"]}
    table.add_row("dense", "", *(number(dense[text]) for _, text in columns))
    cells = {(r["method"], r["allocation"], r["ratio"], r["text"]): r for r in found["rows"]}
    for method, allocation in dict.fromkeys((row["method"], row["allocation"]) for row in found["rows"]):
        row = [cells[method, allocation, ratio, text] for ratio, text in columns]
        table.add_row(method, allocation, *(f"{number(cell['perplexity'])} ({cell['kl']:.3f})" for cell in row))
    # As wide as it needs to be: what reads a pipe wants rows, not folded cells.
    out = Console(file=io.StringIO(), width=max(120, 34 + 30 * len(columns)), color_system=None)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    lines = [line.rstrip() for line in out.file.getvalue().splitlines()]
    lines.append("perplexity (KL to the dense model, nats per token); fp32 factors, ratio of the linears' parameters")
    if folder is not None:
        lines += ["", f"{folder / 'index.html'} shows all of it."]
    return "\n".join(lines)


def number(perplexity: float) -> str:
    """Four figures; powers of ten where a model is beyond use."""
    return (
        f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.0f}" if perplexity < 1e5 else f"{perplexity:.1e}"
    )
