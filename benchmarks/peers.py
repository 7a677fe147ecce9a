"""Ours and every rival from the same dense model, on the same tokens, measured in one run, losses included.

    python benchmarks/peers.py --model FOLDER --text FILE.txt [--bundles DIR ...] [--out out/peers] [--rivals a,b]
        [--rounds 3] [--threads 1,2] [--batch 4] [--windows 64] [--quick]

FOLDER is a Hugging Face folder of the Llama architecture. Rivals (llama.cpp, genai, onnxruntime, openvino, optimum,
torch) are installed into environments of their own; --bundles are finished bundles of the same model, by default fits
of 145, 88 and 62 MB made here. Environments, conversions, scores and memory that are finished lie in OUT and are not
done again; speeds are, in rounds over all contestants, each in a fresh process. `--rounds 0` takes no speeds and shows
the last ones. A rival that fails is reported below the tables, and the rest goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rivals.contestants import REFERENCE, TOOLS, Contestant, Workplace, fitted, ours, rivals
from rivals.measure import Entrant, Kept, Setting, once, rounds, say
from rivals.table import (
    TIED,
    TIED_PERPLEXITY,
    Result,
    Spread,
    bandwidth_table,
    batch_table,
    best_rivals_table,
    main_table,
    speed_of,
    speed_table,
)
from rivals.weights import bytes_read

from edge_svd.errors import EdgeSvdError, Failure, InputError
from edge_svd.files import atomic_write, read_json, sha256_file
from edge_svd.report.machine import describe, today
from edge_svd.runtime.text import read_text
from edge_svd.runtime.tokenizer import Tokenizer

SIZES = ("145MB", "88MB", "62MB")
WINDOW, WINDOWS, QUICK_WINDOWS = 512, 64, 4
QUICK_NEW = 32
RESULTS = Path(__file__).parent / "results"

NOTES = """\
Perplexity is over dense fp32 in torch on the first {windows} windows of {window} tokens of the text, without BOS; token
ids are made once and handed to everyone. MB are weights and graph, ours everything in the folder. Decode: prompt
{prompt}, {new} new tokens, greedy, no stopping; prefill: {long} tokens. Peak RSS: VmHWM of a process that loads (the
tokenizer too), prompts and decodes, nothing else, {most} threads. Every measurement is a fresh process, medians
(least–most) of all rounds; each at the number of threads at which it decodes fastest. × is ours / theirs; within
{tied:.0%} (perplexity {tied_perplexity:.1%}) nobody loses."""


@dataclass(frozen=True)
class Run:
    """What was asked for, checked."""

    place: Workplace
    text: Path
    contestants: tuple[Contestant, ...]
    setting: Setting
    rounds: int
    threads: tuple[int, ...]
    batch: int
    complete: bool


def check_model(folder: Path) -> None:
    """InputError unless FOLDER is a Hugging Face folder that every rival's converter takes."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --model needs a Hugging Face folder.")
    config = read_json(folder / "config.json", "model's configuration")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "llama":
        raise InputError(f"{folder} holds a model of type {kind!r}; the comparison is of the Llama architecture.")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no *.safetensors.")
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder} has no tokenizer.json.")


def digest(model: Path, text: Path) -> dict[str, str]:
    """Of what all that lies in OUT was made from."""
    parts = hashlib.sha256()
    for file in (model / "config.json", model / "tokenizer.json", *sorted(model.glob("*.safetensors"))):
        parts.update(f"{file.name} {sha256_file(file)}\n".encode())
    return {"model": parts.hexdigest(), "text": sha256_file(text)}


def claim(out: Path, inputs: dict[str, str]) -> None:
    """Make OUT the folder of these inputs; InputError where it is another model's or text's."""
    kept = out / "inputs.json"
    if not kept.exists():
        atomic_write(kept, json.dumps(inputs))
    elif read_json(kept, "inputs of an earlier run") != inputs:
        raise InputError(f"{out} holds results of another model or text; name another --out.")


def windows_of(model: Path, text: Path, count: int, file: Path) -> Path:
    """The first windows of the text as int64 [count, 512] in FILE.npy; InputError on a text with fewer."""
    if not file.exists():
        ids = Tokenizer.from_bytes((model / "tokenizer.json").read_bytes()).encode(read_text(text))
        if len(ids) < count * WINDOW:
            raise InputError(f"{text} has {len(ids)} tokens; {count * WINDOW} are needed.")
        partial = file.with_name(f"partial-{file.name}")
        np.save(partial, np.asarray(ids[: count * WINDOW], np.int64).reshape(count, WINDOW))
        partial.replace(file)
    return file


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Positive numbers between commas; InputError otherwise."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"{what} needs positive numbers between commas, not {text!r}.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def prepare(options: argparse.Namespace) -> Run:
    """Everything that can be refused is refused here, before anything is installed or fitted."""
    check_model(options.model)
    tools = tuple(dict.fromkeys(options.rivals.split(","))) if options.rivals else TOOLS
    chosen = rivals(options.model, tools)
    threads = numbers(options.threads, "--threads")
    if options.rounds < 0 or options.batch < 0:
        raise InputError("--rounds and --batch cannot be negative.")
    if options.windows < 1:
        raise InputError("--windows needs a positive number.")
    count = QUICK_WINDOWS if options.quick else options.windows
    text = options.text
    if not text.is_file():
        raise InputError(f"The text file {text} does not exist.")
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    claim(out, digest(options.model, text))
    setting = Setting(windows_of(options.model, text, count, out / f"windows-{count}.npy"), count)
    if options.quick:
        setting = Setting(setting.tokens, count, new=QUICK_NEW)
    place = Workplace(options.model.resolve(), out)
    bundles = [bundle.resolve() for bundle in options.bundles] or fitted(place, SIZES)
    return Run(
        place,
        text,
        (*chosen, *ours(bundles)),
        setting,
        min(options.rounds, 1) if options.quick else options.rounds,
        threads,
        options.batch,
        complete=not options.quick and count == WINDOWS and set(tools) == set(TOOLS),
    )


def ready(run: Run, failures: dict[str, str]) -> list[Entrant]:
    """Those whose environment and files could be made; why not, of the others, goes into `failures`."""
    found, broken = [], {}
    for contestant in run.contestants:
        tool = contestant.environment
        try:
            if tool in broken:
                raise Failure(broken[tool])
            try:
                python = run.place.python(tool)
            except EdgeSvdError as error:
                broken[tool] = str(error)
                raise
            found.append(Entrant(contestant, python, contestant.prepare(run.place)))
        except EdgeSvdError as error:
            failures[contestant.name] = str(error)
    return found


def score_all(run: Run, entrants: Sequence[Entrant], kept: Kept, failures: dict[str, str]) -> list[Entrant]:
    """Scores and memory; those that could be measured."""
    for entrant in entrants:
        try:
            once(entrant, kept, run.setting, max(run.threads))
        except EdgeSvdError as error:
            failures[entrant.name] = str(error)
    return [entrant for entrant in entrants if entrant.name not in failures]


def results_of(entrants: Sequence[Entrant], kept: Kept) -> list[Result]:
    """What is kept of every contestant, put together."""
    scores, memory, speeds, batches = (kept.of(part) for part in ("score", "memory", "speed", "batch"))
    dense = scores.get(REFERENCE)
    found = []
    for entrant in entrants:
        name = entrant.name
        files = entrant.contestant.fingerprint(entrant.path)
        own = {int(threads): speed_of(turns(entry, name, files), name) for threads, entry in speeds.items()}
        together = [
            turn[name]["decode_tokens_per_s"]
            for entry in batches.values()
            for turn in turns(entry, name, files)
            if name in turn and "error" not in turn[name]
        ]
        size = entrant.contestant.bytes(entrant.path)
        read, which = bytes_read(entrant.path, size)
        found.append(
            Result(
                name,
                entrant.contestant.ours,
                size,
                None if dense is None or name not in scores else scores[name]["perplexity"] / dense["perplexity"] - 1,
                Spread(tuple(memory[name]["peak_rss_bytes"])) if name in memory else None,
                {threads: speed for threads, speed in own.items() if speed is not None},
                Spread(tuple(together)) if together else None,
                read,
                which,
            )
        )
    return found


def turns(entry: dict[str, Any], name: str, files: str) -> list[dict[str, Any]]:
    """The rounds of a kept run; none where the contestant's files were others then."""
    return list(entry["rounds"]) if entry["files"].get(name) == files else []


def report(run: Run, results: Sequence[Result], kept: Kept, failures: dict[str, str], notes: dict[str, str]) -> str:
    """All tables in Markdown, with what has to be known to read them."""
    setting = run.setting
    said = NOTES.format(
        windows=setting.windows,
        window=WINDOW,
        prompt=setting.prompt,
        new=setting.new,
        long=setting.long,
        most=max(run.threads),
        tied=TIED,
        tied_perplexity=TIED_PERPLEXITY,
    )
    parts = [main_table(results), said, best_rivals_table(results), speed_table(results)]
    for threads, entry in kept.of("batch").items():
        parts.append(batch_table(results, entry["batch"], int(threads)))
        without = {name: found["error"] for name, found in entry["rounds"][0].items() if "error" in found}
        parts += [f"No batch: {name} ({error})." for name, error in without.items()]
    bandwidth = {int(threads): Spread(tuple(entry["bytes_per_s"])) for threads, entry in kept.of("bandwidth").items()}
    if bandwidth:
        rates = ", ".join(f"{n} threads {value.text(1e9, 1)} GB/s" for n, value in sorted(bandwidth.items()))
        parts.append(f"Memory read by numpy, arrays far above the last-level cache: {rates}.")
        parts.append(bandwidth_table(results, bandwidth))
    parts += [f"{', '.join(names)}: {note}." for note, names in grouped(notes).items()]
    parts += [f"Failed: {name}: {error}" for name, error in failures.items()]
    machine = describe()
    parts.append(f"{today()}, {machine['cores']} cores of {machine['processor']}, {machine['system']}.")
    return "\n\n".join(parts)


def grouped(notes: dict[str, str]) -> dict[str, list[str]]:
    """Note → whom it is about."""
    found: dict[str, list[str]] = {}
    for name, note in notes.items():
        found.setdefault(note, []).append(name)
    return found


def record(run: Run, results: Sequence[Result], kept: Kept, failures: dict[str, str]) -> dict[str, Any]:
    """Everything raw, for a results file."""
    versions: dict[str, dict[str, str]] = {}
    for contestant in run.contestants:
        found = kept.of("score").get(contestant.name)
        if found:
            versions.setdefault(contestant.tool, {}).update(found["versions"])
    rows = [
        {"name": result.name, "ours": result.ours, "file_bytes": result.bytes, "perplexity_change": result.change}
        | {"read_bytes": result.read, "read_of": result.which, "best_threads": result.threads}
        for result in results
    ]
    setting = {"windows": run.setting.windows, "window": WINDOW, "prompt": run.setting.prompt}
    return {
        "date": today(),
        "machine": describe(),
        "versions": versions,
        "inputs": read_json(run.place.out / "inputs.json", "inputs"),
        "setting": {**setting, "long": run.setting.long, "new": run.setting.new},
        "rows": rows,
        "failures": failures,
        "measured": kept.content,
    }


def work(options: argparse.Namespace) -> None:
    run = prepare(options)
    kept = Kept(run.place.out / ("quick.json" if options.quick else "measured.json"))
    failures: dict[str, str] = {}
    entrants = score_all(run, ready(run, failures), kept, failures)
    if run.rounds:
        rounds(entrants, kept, run.setting, run.rounds, run.threads, run.batch, failures)
    results = results_of(entrants, kept)
    notes = {entrant.name: entrant.contestant.note for entrant in entrants if entrant.contestant.note}
    tables = report(run, results, kept, failures, notes)
    print(tables)
    atomic_write(run.place.out / "peers.md", tables + "\n")
    content = json.dumps(record(run, results, kept, failures), indent=1) + "\n"
    atomic_write(run.place.out / f"peers-{today()}.json", content)
    if run.complete and run.rounds:
        atomic_write(RESULTS / f"peers-{today()}.json", content)
        say(f"Kept as {RESULTS / f'peers-{today()}.json'}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE.txt")
    parser.add_argument("--bundles", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    parser.add_argument("--rivals", help=f"of {','.join(TOOLS)}; by default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", type=int, default=4, help="sequences decoded in step, 0 or 1 for none")
    parser.add_argument("--windows", type=int, default=WINDOWS, help=f"of {WINDOW} tokens that perplexity is taken on")
    parser.add_argument("--quick", action="store_true", help="four windows, one round, 32 new tokens")
    options = parser.parse_args()
    try:
        work(options)
    except EdgeSvdError as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
