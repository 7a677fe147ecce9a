"""The tables of docs/methods.md from what `benchmarks/methods.py` measured.

    python benchmarks/methods_tables.py [RESULTS.json]

RESULTS.json is what `benchmarks/methods.py` wrote, without it benchmarks/results/methods.json. Every table stands
between two comments that name it, and is written over.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edge_svd.files import atomic_write
from edge_svd.report.compare_labels import label, number, share

RESULTS = Path(__file__).parent / "results" / "methods.json"
"""Parts that were measured on different days lie side by side, each with its date and machine."""

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
WIKI = "wikitext2_raw.test"

Table = dict[str, Any]


def text_table(tables: Sequence[Table], ratio: float | None = None, text: str | None = None) -> list[str]:
    """Perplexity over dense with KL, a line a way, a column a text and ratio; of all tables at that ratio, on that
    text. Lines with dense perplexities where columns are texts."""
    rows = [row for table in tables for row in table["rows"]]
    rows = [row for row in rows if ratio in (None, row["ratio"]) and text in (None, row["text"])]
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    texts = list(dict.fromkeys(row["text"] for row in rows))
    columns = [(at, of) for at in ratios for of in texts]
    titles = [
        " ".join([of.removesuffix(".test")] * (text is None) + [f"{at:g}"] * (ratio is None)) for at, of in columns
    ]
    lines = _head(["", *titles])
    if text is None:
        dense = {of["name"]: number(of["dense_perplexity"]) for table in tables for of in table["texts"]}
        lines.append(_line(["dense, perplexity", *(dense[of] for _, of in columns)]))
    cells = {(label(row), row["ratio"], row["text"]): row for row in rows}
    for name in dict.fromkeys(map(label, rows)):
        found = [cells.get((name, *column)) for column in columns]
        lines.append(_line([_code(name), *("–" if cell is None else over(cell) for cell in found)]))
    return lines


def over(row: Table) -> str:
    """Perplexity over dense, and the KL."""
    times = row["over_dense"]
    shown = f"{times:.3f}" if times < 10 else f"{times:.1f}" if times < 1000 else f"{times:.1e}"
    return f"{shown} ({row['kl']:.3g})"


def healing_table(tables: Sequence[Table]) -> list[str]:
    """A line a way of healing, a column a ratio: perplexity over dense with KL, and what it took; the KL on held-out
    windows of its own text before and behind each step."""
    rows = [row for table in tables for row in table["rows"]]
    choices = [choice for table in tables for choice in table["choices"]]
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    lines = _head(["", *(f"{ratio:g}" for ratio in ratios)])
    for heal in dict.fromkeys(row["heal"] for row in rows):
        cells = []
        for ratio in ratios:
            (row,) = (row for row in rows if (row["heal"], row["ratio"]) == (heal, ratio))
            (choice,) = (choice for choice in choices if (choice["heal"], choice["ratio"]) == (heal, ratio))
            steps = [
                f"{step['seconds']:.0f} s, held out {step['kl_before']:.3f} → {step['kl_after']:.3f}"
                + ("" if step["kept"] else ", not kept")
                for step in choice["healing"]
            ]
            cells.append("; ".join([over(row), *steps]))
        lines.append(_line(["as decomposed" if heal == "none" else _code(heal), *cells]))
    return lines


def task_table(tables: Sequence[Table]) -> list[str]:
    """Accuracy, and by length where that differs, in percent with standard errors; the mean of accuracies."""
    rows = [row for table in tables for row in table["tasks"]]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = _head(["", *tasks, "mean"])
    for name in dict.fromkeys(row["method"] for row in rows):
        own = {row["task"]: row for row in rows if row["method"] == name}
        shown = []
        for task in tasks:
            plain = share(own[task]["acc"], own[task]["acc_stderr"])
            by_length = share(own[task]["acc_norm"], own[task]["acc_norm_stderr"])
            shown.append(plain if own[task]["acc_norm"] == own[task]["acc"] else f"{plain} / {by_length}")
        mean = 100 * sum(own[task]["acc"] for task in tasks) / len(tasks)
        lines.append(_line([name if name == "dense" else _code(name), *shown, f"{mean:.1f}"]))
    return lines


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|" + "---|" * len(titles)]


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _code(name: str) -> str:
    return ", ".join(f"`{part}`" for part in name.split(", "))


@dataclass(frozen=True)
class Shown:
    """A table of the page: the parts that it is made of, and how."""

    parts: tuple[str, ...]
    lines: Callable[[Sequence[Table]], list[str]]


TABLES = {
    "decompositions": Shown(("decompositions-ends", "decompositions"), partial(text_table, text=WIKI)),
    "decompositions at 0.8": Shown(("decompositions",), partial(text_table, ratio=0.8)),
    "decompositions at 0.6": Shown(("decompositions",), partial(text_table, ratio=0.6)),
    "allocations": Shown(("allocations-ends", "allocations"), partial(text_table, text=WIKI)),
    "allocations at 0.8": Shown(("allocations",), partial(text_table, ratio=0.8)),
    "allocations at 0.6": Shown(("allocations",), partial(text_table, ratio=0.6)),
    "pivoted": Shown(("pivoted",), partial(text_table, text=WIKI)),
    "zero-sum": Shown(("zero-sum",), partial(text_table, text=WIKI)),
    "strs at 0.8": Shown(("strs", "strs-svd-llm"), partial(text_table, ratio=0.8)),
    "strs at 0.6": Shown(("strs", "strs-svd-llm"), partial(text_table, ratio=0.6)),
    "healing": Shown(("healing",), healing_table),
    "refitted": Shown(("refitted",), healing_table),
    "tasks": Shown(("tasks",), task_table),
}


def filled(page: str, parts: Table) -> str:
    """The page with every table that it names written from the parts; exits where a part was not measured."""

    def table(found: re.Match[str]) -> str:
        shown = TABLES[found[1]]
        missing = [name for name in shown.parts if name not in parts]
        if missing:
            sys.exit(f"{PAGE.name} shows {found[1]}, and {', '.join(missing)} was not measured; run methods.py --only.")
        lines = shown.lines([parts[name]["table"] for name in shown.parts])
        return "\n".join([f"<!-- table: {found[1]} -->", *lines, "<!-- end -->"])

    return re.sub(r"<!-- table: (.+?) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parts = json.loads(parser.parse_args().results.read_text())["parts"]
    atomic_write(PAGE, filled(PAGE.read_text("utf-8"), parts).encode())
    print(PAGE)


if __name__ == "__main__":
    main()
