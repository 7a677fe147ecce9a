"""Every table of docs/methods.md: published methods side by side at equal parameters, healed, and on tasks.

    python benchmarks/methods.py MODEL --data DIR [--only PART ...] [--commands]

MODEL is best the permuted copy of the demonstration model (benchmarks/permute.py says why). DIR holds, as .txt or
.txt.gz, wikitext2_raw.train (calibration) and the test texts wikitext2_raw, c4, code_python, cmrc2018_zh and
jsquad_ja; and, as .jsonl or .jsonl.gz, the tasks arc_easy, piqa, winogrande, hellaswag, openbookqa and mathqa. Every
table is one `edge-svd compare`, whose command is printed (--commands prints them and does nothing else). Every row is
kept as soon as it is measured, so an interrupted run continues, and one row is made again by the command with less in
its lists and another EDGE_SVD_CACHE. `benchmarks/methods_tables.py` writes the tables into docs/methods.md.
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

from methods_tables import RESULTS, healing_table, task_table, text_table

from edge_svd.files import atomic_write, canonical_json
from edge_svd.report.machine import describe, today

METHODS = "svd,fwsvd,asvd,asvd-iii,svd-llm,svd-llm-v2,nsvd-i,nsvd-ii,nid-i,nid-ii,zs-svd,io-svd"
MEASURED = "second-order-measured"
ALLOCATIONS = f"uniform,grouped,first-order,second-order,{MEASURED}"
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
    factors: str = "plain"

    def command(self, model: str, data: Path, shown: Path | None = None) -> list[str]:
        """The command line that makes it; with files looked for in `data` and called as if they lay in `shown`."""

        def file(name: str, suffix: str) -> str:
            path = found(data, name, suffix)
            return str(path if shown is None else shown / path.name)

        line = ["edge-svd", "compare", model, "--methods", self.methods, "--allocations", self.allocations]
        line += ["--ratios", self.ratios, "--calibration", file("wikitext2_raw.train", ".txt")]
        if self.factors != "plain":
            line += ["--factors", self.factors]
        if self.heal != "none":
            line += ["--heal", self.heal, "--heal-windows", str(self.heal_windows)]
        for text in self.texts:
            line += ["--text", file(f"{text}.test", ".txt")]
        for task in self.tasks:
            line += ["--task", file(task, ".jsonl")]
        line += ["--task-limit", str(ITEMS)] if self.tasks else []
        return [*line, "--json"]


PARTS = {
    "decompositions": Part("Decompositions, uniform ranks", METHODS, "uniform", "0.8,0.6", TEXTS),
    "decompositions-ends": Part("Decompositions, little and much cut off", METHODS, "uniform", "0.9,0.4"),
    "allocations": Part("Allocations", "io-svd,svd-llm", ALLOCATIONS, "0.8,0.6", TEXTS),
    "allocations-ends": Part("Allocations, little and much cut off", "io-svd,svd-llm", ALLOCATIONS, "0.9,0.4"),
    "healing": Part("Distilled", "io-svd", MEASURED, "0.8,0.6,0.4", heal="none,distil:steps=200", heal_windows=440),
    "refitted": Part("Refitted", "io-svd", "second-order", "0.8,0.6", heal="none,refit", heal_windows=440),
    "pivoted": Part(
        "Pivoted factors",
        "io-svd,svd-llm",
        f"uniform,first-order,second-order,{MEASURED}",
        "0.9,0.8,0.6,0.4",
        factors="pivoted",
    ),
    "zero-sum": Part("Zero-sum, with the factors that it was made for", "zs-svd", "uniform,zero-sum", "0.8,0.6"),
    "strs": Part("Sensitivity-based search, an hour on two cores", "io-svd", "strs", "0.8,0.6", TEXTS),
    "strs-svd-llm": Part("The same for svd-llm, another hour", "svd-llm", "strs", "0.8,0.6", TEXTS),
    "tasks": Part("Tasks", "svd-llm-v2,nsvd-i,io-svd", "uniform", "0.8", (), tasks=TASKS),
}


def found(data: Path, name: str, suffix: str) -> Path:
    """A file of the data folder, plain or .gz."""
    for end in (suffix, f"{suffix}.gz"):
        if (data / f"{name}{end}").exists():
            return data / f"{name}{end}"
    sys.exit(f"{data} has no {name}{suffix} or {name}{suffix}.gz; README.md says where to get the data.")


def kept(table: dict[str, Any]) -> dict[str, Any]:
    """What of a compare.json the tables are made of; ranks of single matrices, which are most of it, are left out."""
    choices = [{key: choice[key] for key in choice if key not in ("ranks", "added")} for choice in table["choices"]]
    model = table["model"] | {"name": Path(table["model"]["name"]).name}
    rest = {key: table[key] for key in ("window", "windows", "texts", "rows", "tasks")}
    return rest | {"model": model, "choices": choices}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--commands", action="store_true", help="print the commands and stop")
    options = parser.parse_args()
    for name in options.only:
        part = PARTS[name]
        command = part.command(options.model, options.data)
        print(f"\n## {part.title}\n\n    {shlex.join(command)}\n", flush=True)
        if options.commands:
            continue
        done = subprocess.run([sys.executable, "-m", "edge_svd.cli", *command[1:]], stdout=subprocess.PIPE, check=True)
        table = json.loads(done.stdout)
        lines = healing_table if part.heal != "none" else text_table if part.texts else task_table
        print("\n".join(lines([table])), flush=True)
        parts: dict[str, Any] = json.loads(RESULTS.read_text())["parts"] if RESULTS.exists() else {}
        parts[name] = {
            "command": part.command("MODEL", options.data, shown=Path("DIR")),
            "machine": describe(),
            "date": today(),
            "table": kept(table),
        }
        atomic_write(RESULTS, canonical_json({"parts": parts}))
        print(f"\n{RESULTS}")


if __name__ == "__main__":
    main()
