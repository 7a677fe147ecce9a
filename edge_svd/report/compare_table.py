"""A comparison on the terminal: a line a method, allocation, kind of factors and healing, a column a text or task and
ratio or size."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_svd.report.compare_labels import Key, amount, healed, key, label, number, pivoted, share

Row = Mapping[str, Any]


def compare_table(found: Row, folder: Path | None = None) -> str:
    """Perplexity with KL to the dense model, accuracy on tasks, and what healing took and gained."""
    lines: list[str] = []
    if found["rows"]:
        lines += _loss_lines(found)
    if found["tasks"]:
        lines += [""] * bool(lines) + _task_lines(found)
    if healed(found):
        lines += ["", *_healing_lines(found)]
    lines += _damping_lines(found)
    if folder is not None:
        lines += ["", f"{folder / 'index.html'} shows all of it."]
    return "\n".join(lines)


def _loss_lines(found: Row) -> list[str]:
    dense = {text["name"]: number(text["dense_perplexity"]) for text in found["texts"]}
    total = found["model"]["parameters"]

    def cell(row: Row) -> str:
        kept = "" if row["target"] is None else f" {row['parameters'] / total:.1%}"
        return f"{number(row['perplexity'])} ({row['kl']:.3f}){kept}"

    lines = _grid(found, found["rows"], "text", dense, cell)
    lines.append("perplexity (KL to the dense model, nats per token)")
    if any(choice["ratio"] is not None for choice in found["choices"]):
        lines.append("at a ratio of the linears' parameters: fp32 factors")
    if any(choice["target"] is not None for choice in found["choices"]):
        lines.append(
            "≤ a multiple of the dense perplexity, on held-out calibration text: fp32 factors, and the share kept of "
            "the linears' parameters"
        )
    if found["candidates"]:
        lines.append(
            f"at a size of the whole folder: planned from {', '.join(found['candidates'])}, rounded as shipped"
        )
    return lines


def _task_lines(found: Row) -> list[str]:
    def cell(row: Row) -> str:
        return f"{share(row['acc'], row['acc_stderr'])} ({share(row['acc_norm'], row['acc_norm_stderr'])})"

    dense = {row["task"]: cell(row) for row in found["tasks"] if row["method"] == "dense"}
    rows = [row for row in found["tasks"] if row["method"] != "dense"]
    counts = {row["task"]: row["n"] for row in found["tasks"]}
    items = ", ".join(f"{count} items of {task}" for task, count in counts.items())
    return [*_grid(found, rows, "task", dense, cell), f"accuracy (by length) in percent ± standard error; {items}"]


def _grid(found: Row, rows: list[Row], what: str, dense: Mapping[str, str], shown: Callable[[Row], str]) -> list[str]:
    """Columns by amount and `row[what]`; the dense model's cells by the latter."""
    columns = list(dict.fromkeys((amount(row), row[what]) for row in rows))
    cells = {(key(row), amount(row), row[what]): shown(row) for row in rows}
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ["method", "allocation", *["factors"] * pivoted(found), *["heal"] * healed(found)]
    for name in names:
        table.add_column(name)
    for size, name in columns:
        table.add_column(f"{name} {size}", justify="right")
    table.add_row("dense", *[""] * (len(names) - 1), *(dense[name] for _, name in columns))
    titles: dict[Key, list[str]] = {}
    for row in rows:
        titles.setdefault(key(row), [row[name] or "" for name in names])
    for line, title in titles.items():
        table.add_row(*title, *(cells[line, *column] for column in columns))
    # As wide as it needs to be: what reads a pipe wants rows, not folded cells.
    out = Console(file=io.StringIO(), width=max(120, 60 + 34 * len(columns)), color_system=None)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    return [line.rstrip() for line in out.file.getvalue().splitlines()]


def _damping_lines(found: Row) -> list[str]:
    """What methods that need a positive definite second moment put on its diagonal."""
    added = {choice["method"]: choice.get("added", {}) for choice in found["choices"]}
    return [
        f"{method}: {len(of)} second moments were damped, by {max(of.values()):.3g} on the diagonal at most"
        for method, of in added.items()
        if of
    ]


def _healing_lines(found: Row) -> list[str]:
    lines = ["healing: seconds, KL on held-out windows of its text before and after, nats per token"]
    for choice in found["choices"]:
        for step in choice["healing"]:
            kept = "" if step["kept"] else ", not kept"
            kl = f"{step['kl_before']:.4f} → {step['kl_after']:.4f}"
            lines.append(f"{label(choice)}, {amount(choice)}: {step['step']} {step['seconds']:.1f} s, KL {kl}{kept}")
    return lines
