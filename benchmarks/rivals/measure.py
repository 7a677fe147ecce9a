"""Workers started one by one, and what they measured, kept in OUT/measured.json."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.errors import Failure
from edge_svd.files import atomic_write, read_json
from rivals.contestants import HERE, Contestant, worker_environment
from rivals.environments import run
from rivals.protocol import Request

LIMIT = 1800.0
"""Seconds after which a worker is given up."""

MEMORY_RUNS = 3


@dataclass(frozen=True)
class Entrant:
    """A contestant whose files are ready."""

    contestant: Contestant
    python: Path
    path: Path

    @property
    def name(self) -> str:
        return self.contestant.name

    def measure(self, task: str, setting: Setting, threads: int, batch: int = 1) -> dict[str, Any]:
        """One fresh process; Failure with its error."""
        request = Request(
            task,
            str(self.path),
            str(setting.tokens),
            threads,
            prompt=setting.prompt,
            long=setting.long,
            new=setting.new,
            batch=batch,
            options=self.contestant.options,
        )
        command = [str(self.python), str(self.contestant.script), request.to_json()]
        return answer(run(command, f"{self.name}, {task}", worker_environment(), LIMIT), f"{self.name}, {task}")


@dataclass(frozen=True)
class Setting:
    """The same for all: an .npy of windows, and how many tokens are prompted and made."""

    tokens: Path
    windows: int
    prompt: int = 64
    long: int = 512
    new: int = 128


def answer(output: str, what: str) -> dict[str, Any]:
    """The JSON in a worker's last line; Failure if it is none, or an error."""
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise Failure(f"{what}: the worker gave no answer") from None
    if not isinstance(found, dict):
        raise Failure(f"{what}: the worker gave no answer")
    if "error" in found:
        raise Failure(f"{what}: {found['error']}")
    return found


class Kept:
    """OUT/measured.json, written after every measurement.

    `score` and `memory` by contestant, good for the same files and the same setting; `speed` and `batch` by number of
    threads, rounds of one run; `bandwidth` by number of threads.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content: dict[str, Any] = read_json(file, "kept measurements") if file.exists() else {}

    def of(self, part: str) -> dict[str, Any]:
        return dict(self.content.get(part, {}))

    def put(self, part: str, name: str, value: Any) -> None:
        self.content.setdefault(part, {})[name] = value
        atomic_write(self.file, json.dumps(self.content, indent=1))

    def finished(self, part: str, name: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What was measured under the same key."""
        found = self.content.get(part, {}).get(name)
        return found if found and found["key"] == dict(key) else None


def once(entrant: Entrant, kept: Kept, setting: Setting, threads: int, runs: int = MEMORY_RUNS) -> None:
    """Score and memory of one contestant, where they are not kept. Failure as `Entrant.measure`."""
    files = {"files": entrant.contestant.fingerprint(entrant.path)}
    key = {**files, "windows": setting.windows}
    if kept.finished("score", entrant.name, key) is None:
        say(f"{entrant.name}: scoring {setting.windows} windows")
        kept.put("score", entrant.name, {"key": key, **entrant.measure("score", setting, threads)})
    key = {**files, "new": setting.new}
    if kept.finished("memory", entrant.name, key) is None:
        say(f"{entrant.name}: memory")
        peaks = [entrant.measure("memory", setting, threads)["peak_rss_bytes"] for _ in range(runs)]
        kept.put("memory", entrant.name, {"key": key, "threads": threads, "peak_rss_bytes": peaks})


def rounds(
    entrants: Sequence[Entrant],
    kept: Kept,
    setting: Setting,
    count: int,
    threads: Sequence[int],
    batch: int,
    failures: dict[str, str],
) -> None:
    """`count` rounds: in each, memory bandwidth, then every contestant once a thread count, then once with a batch.

    Every measurement is a fresh process. The first failure of a contestant goes into `failures` and ends its part; one
    of a batch is kept as the reason why it has none.
    """
    begun = {
        "taken": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "files": {entrant.name: entrant.contestant.fingerprint(entrant.path) for entrant in entrants},
    }
    speeds: dict[int, list[dict[str, Any]]] = {number: [] for number in threads}
    batches: list[dict[str, Any]] = []
    reads: dict[int, list[float]] = {number: [] for number in threads}
    for turn in range(count):
        say(f"round {turn + 1} of {count}")
        for number in threads:
            reads[number].append(bandwidth(number))
            kept.put("bandwidth", str(number), {"taken": begun["taken"], "bytes_per_s": reads[number]})
            speeds[number].append({})
            for entrant in entrants:
                if entrant.name in failures:
                    continue
                try:
                    speeds[number][-1][entrant.name] = entrant.measure("speed", setting, number)
                except Failure as error:
                    failures[entrant.name] = str(error)
                kept.put("speed", str(number), {**begun, "rounds": speeds[number]})
        if batch > 1:
            batches.append({})
            for entrant in entrants:
                if entrant.name in failures or (batches[0].get(entrant.name) or {}).get("error"):
                    continue
                try:
                    batches[-1][entrant.name] = entrant.measure("batch", setting, max(threads), batch)
                except Failure as error:
                    batches[-1][entrant.name] = {"error": str(error)}
                kept.put("batch", str(max(threads)), {**begun, "batch": batch, "rounds": batches})


def bandwidth(threads: int) -> float:
    """Bytes a second read from memory, measured in a process of its own."""
    output = run([sys.executable, str(HERE / "bandwidth.py"), str(threads)], "memory bandwidth", worker_environment())
    return float(answer(output, "memory bandwidth")["bytes_per_s"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
