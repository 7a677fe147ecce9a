"""Every table of docs/methods.md: published methods side by side at equal parameters, healed, and on tasks.

    python benchmarks/methods.py MODEL --data DIR [--only PART ...] [--commands]

MODEL is best the permuted copy of the demonstration model (benchmarks/permute.py says why). DIR holds, as .txt or
.txt.gz, wikitext2_raw.train (calibration) and the test texts wikitext2_raw, c4, code_python, cmrc2018_zh and
jsquad_ja; and, as .jsonl or .jsonl.gz, the tasks arc_easy, piqa, winogrande, hellaswag, openbookqa and mathqa. Every
table is one `edge-svd compare`, whose command is printed (--commands prints them and does nothing else). Every row is
kept as soon as it is measured, so an interrupted run continues, and one row is made again by the command with less in
its lists and another EDGE_SVD_CACHE.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.files import atomic_write, canonical_json
from edge_svd.report.compare_table import number
from edge_svd.report.machine import describe, today

METHODS = "svd,fwsvd,asvd,asvd-iii,svd-llm,svd-llm-v2,nsvd-i,nsvd-ii,nid-i,nid-ii,zs-svd,io-svd"
ALLOCATIONS = "uniform,grouped,first-order,second-order,second-order-measured"
TEXTS = ("wikitext2_raw", "c4", "code_python", "cmrc2018_zh", "jsquad_ja")
ITEMS = 200
TASKS = ("arc_easy", "piqa", "winogrande", "hellaswag", "openbookqa", "mathqa")


@dataclass(frozen=True)
class Part:
    """One table."""

    title: str
    methods: str
    allocations: str
    ratios: str
    texts: tuple[str, ...] = ("wikitext2_raw",)
    heal: str = "none"
    heal_windows: int = 0
    tasks: tuple[str, ...] = ()

    def command(self, model: str, data: Path) -> list[str]:
        """The command line that makes it."""
        line = ["edge-svd", "compare", model, "--methods", self.methods, "--allocations", self.allocations]
        line += ["--ratios", self.ratios, "--calibration", str(found(data, "wikitext2_raw.train", ".txt"))]
        if self.heal != "none":
            line += ["--heal", self.heal, "--heal-windows", str(self.heal_windows)]
        for text in self.texts:
            line += ["--text", str(found(data, f"{text}.test", ".txt"))]
        for task in self.tasks:
            line += ["--task", str(found(data, task, ".jsonl"))]
        line += ["--task-limit", str(ITEMS)] if self.tasks else []
        return [*line, "--json"]


PARTS = {
    "decompositions": Part("Decompositions, uniform ranks", METHODS, "uniform", "0.8,0.6", TEXTS),
    "decompositions-ends": Part("Decompositions, little and much cut off", METHODS, "uniform", "0.9,0.4"),
    "allocations": Part("Allocations", "io-svd,svd-llm", ALLOCATIONS, "0.8,0.6", TEXTS),
    "allocations-ends": Part("Allocations, little and much cut off", "io-svd,svd-llm", ALLOCATIONS, "0.9,0.4"),
    "healing": Part(
        "Healing",
        "io-svd",
        "second-order-measured",
        "0.8,0.6,0.4",
        heal="none,refit,distil:steps=200",
        heal_windows=440,
    ),
    "zero-sum": Part("Zero-sum, with the factors that it was made for", "zs-svd", "uniform,zero-sum", "0.8,0.6"),
    "strs": Part("Sensitivity-based search, hours on two cores", "io-svd,svd-llm", "strs", "0.8,0.6", TEXTS),
    "tasks": Part("Tasks", "svd-llm-v2,nsvd-i,io-svd", "uniform", "0.8", (), tasks=TASKS),
}


def found(data: Path, name: str, suffix: str) -> Path:
    """A file of the data folder, plain or .gz."""
    for end in (suffix, f"{suffix}.gz"):
        if (data / f"{name}{end}").exists():
            return data / f"{name}{end}"
    sys.exit(f"{data} has no {name}{suffix} or {name}{suffix}.gz; README.md says where to get the data.")


def columns(table: dict[str, Any]) -> list[tuple[float, str]]:
    return list(dict.fromkeys((row["ratio"], row["text"]) for row in table["rows"]))


def text_table(table: dict[str, Any]) -> list[str]:
    """Perplexity over dense and KL, a line a method, a column a ratio and text."""
    cells = {(r["method"], r["allocation"], r["heal"], r["ratio"], r["text"]): r for r in table["rows"]}
    lines = ["| | " + " | ".join(f"{text} {ratio:g}" for ratio, text in columns(table)) + " |"]
    lines.append("|---|" + "---|" * len(columns(table)))
    dense = {text["name"]: number(text["dense_perplexity"]) for text in table["texts"]}
    lines.append("| dense, perplexity | " + " | ".join(dense[text] for _, text in columns(table)) + " |")
    for name in dict.fromkeys((row["method"], row["allocation"], row["heal"]) for row in table["rows"]):
        shown = [cells[(*name, *column)] for column in columns(table)]
        figures = [f"{_times(cell['over_dense'])} ({cell['kl']:.3g})" for cell in shown]
        lines.append(f"| {', '.join(part for part in name if part != 'none')} | {' | '.join(figures)} |")
    return lines


def _times(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 1000 else f"{ratio:.1e}"


def task_table(table: dict[str, Any]) -> list[str]:
    """Accuracy, and by length where that differs, with standard errors, in per cent."""
    tasks = list(dict.fromkeys(row["task"] for row in table["tasks"]))
    cells = {(row["method"], row["allocation"], row["ratio"], row["task"]): row for row in table["tasks"]}
    lines = ["| | " + " | ".join(tasks) + " | mean |", "|---|" + "---|" * (len(tasks) + 1)]
    for name in dict.fromkeys((row["method"], row["allocation"], row["ratio"]) for row in table["tasks"]):
        own = [cells[(*name, task)] for task in tasks]
        shown = [
            f"{row['acc']:.1%} ± {row['acc_stderr']:.1%}" + (f" / {row['acc_norm']:.1%}" if differs(row) else "")
            for row in own
        ]
        mean = sum(row["acc"] for row in own) / len(own)
        lines.append(f"| {name[0]} | {' | '.join(shown)} | {mean:.1%} |")
    return lines


def differs(row: dict[str, Any]) -> bool:
    """Whether length makes a difference to a task's accuracy."""
    return bool(row["acc_norm"] != row["acc"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--commands", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": describe(), "date": today(), "parts": {}}
    for name in options.only:
        part = PARTS[name]
        command = part.command(options.model, options.data)
        print(f"\n## {part.title}\n\n    {shlex.join(command)}\n", flush=True)
        if options.commands:
            continue
        done = subprocess.run([sys.executable, "-m", "edge_svd.cli", *command[1:]], stdout=subprocess.PIPE, check=True)
        table = json.loads(done.stdout)
        for lines in (text_table(table) if part.texts else [], task_table(table) if part.tasks else []):
            print("\n".join(lines), flush=True)
        results["parts"][name] = {"command": command, "table": table}
    if not options.commands:
        target = Path(__file__).parent / "results" / f"methods-{today()}.json"
        known = json.loads(target.read_text())["parts"] if target.exists() else {}
        results["parts"] = known | results["parts"]
        atomic_write(target, canonical_json(results))
        print(f"\n{target}")


if __name__ == "__main__":
    main()
