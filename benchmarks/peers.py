"""Our fits beside the rivals' published figures at the rivals' own sizes, losses included, as a Markdown table.

    python benchmarks/peers.py [RESULT ...] [--peers FILE]

RESULT is a benchmarks/results/sizes*.json or figures*.json, a front.json, or the folder of a front that was measured
with --text; by default the newest sizes*.json. For every rival it takes our fit with the least perplexity among those
that are not larger than the rival's file. Rivals' files are weights and graph alone; ours count everything in the
folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PEERS = RESULTS / "peers-2026-11.json"

TEXT = "wikitext2_raw"
"""The text that the rivals were read on."""

TIED = 0.001
"""Relative perplexity within which two are called equal: the published figures are rounded to a tenth of a percent."""


@dataclass(frozen=True)
class Entry:
    """One measured model; `change` of perplexity is relative to dense; a pair is a range, None was not measured."""

    name: str
    bytes: int
    change: float
    decode: Any = None
    prefill: Any = None
    peak: Any = None
    amx: bool = False


def our_entries(path: Path) -> list[Entry]:
    """Our measured fits in a file of results or a front; ValueError where there are none or no dense perplexity."""
    file = path / "front.json" if path.is_dir() else path
    found = json.loads(file.read_bytes())
    if "curves" in found:
        rows = [
            {"name": f"fit {row['label']}", **row["measured"]}
            for row in found["rows"]
            if row["reachable"] and row["measured"] and "perplexity" in row["measured"]
        ]
        dense = found["dense"]["perplexity"] if found["dense"] else None
    elif isinstance(found["rows"], dict):
        rows = [
            {**row, "name": f"fit {size}MB", "perplexity": row["perplexity"][TEXT]}
            for size, row in found["rows"].items()
        ]
        dense = found["dense"]["perplexity"][TEXT]
    else:
        rows = [row for row in found["rows"] if row["target_bytes"] is not None]
        dense = next((row["perplexity"] for row in found["rows"] if row["target_bytes"] is None), None)
    if dense is None or not rows:
        raise ValueError(f"{file} has no measured perplexity of a fit and of the dense model; measure with --text.")
    return [
        Entry(
            row["name"],
            row["file_bytes"],
            row["perplexity"] / dense - 1,
            row.get("decode_tokens_per_s"),
            row.get("prefill_tokens_per_s"),
            row.get("peak_rss_bytes"),
        )
        for row in rows
    ]


def peer_entries(path: Path) -> list[Entry]:
    """The rivals, largest file first."""
    rows = json.loads(path.read_bytes())["rows"]
    entries = [
        Entry(
            row["name"],
            row["bytes"],
            row["perplexity_change"],
            row["decode_tokens_per_s"],
            row["prefill_tokens_per_s"],
            row["peak_rss_bytes"],
            row["amx"],
        )
        for row in rows
    ]
    return sorted(entries, key=lambda entry: (-entry.bytes, entry.name))


def best_within(ours: Sequence[Entry], size: int) -> Entry | None:
    """Our fit with the least perplexity that is not larger than `size` bytes; the smaller one of two equal ones."""
    fitting = [entry for entry in ours if entry.bytes <= size]
    return min(fitting, key=lambda entry: (entry.change, entry.bytes), default=None)


def verdict(ours: float, theirs: float) -> str:
    """By perplexity relative to each other."""
    ratio = (1 + ours) / (1 + theirs) - 1
    if abs(ratio) <= TIED:
        return "equal"
    return f"better by {-ratio:.1%}" if ratio < 0 else f"**worse by {ratio:.1%}**"


def table(ours: Sequence[Entry], peers: Sequence[Entry]) -> str:
    """One row a rival: its figures, our fit's, and who has the lower perplexity."""
    lines = [
        "| rival | MB | perplexity | decode tok/s | prefill tok/s | peak RSS MB | ours, not larger | MB | perplexity "
        "| decode tok/s | prefill tok/s | peak RSS MB | our perplexity is |",
        "|" + "---|" * 13,
    ]
    for peer in peers:
        own = best_within(ours, peer.bytes)
        left = f"| {peer.name}{'†' if peer.amx else ''} | {_cells(peer)}"
        right = (
            "none that small | | | | | | –" if own is None else f"{own.name} | {_cells(own)} | {_verdict(own, peer)}"
        )
        lines.append(f"{left} | {right} |")
    return "\n".join(lines)


def _verdict(own: Entry, peer: Entry) -> str:
    return verdict(own.change, peer.change)


def _cells(entry: Entry) -> str:
    figures = (_number(entry.decode), _number(entry.prefill), _number(entry.peak, 1e6))
    return " | ".join((f"{entry.bytes / 1e6:.1f}", f"{entry.change:+.1%}", *figures))


def _number(value: Any, scale: float = 1.0) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return "–".join(f"{part / scale:.0f}" for part in value)
    return f"{value / scale:.0f}"


def origin(path: Path) -> str:
    """Where and when a results file was measured."""
    found = json.loads((path / "front.json" if path.is_dir() else path).read_bytes())
    machine, versions = found["machine"], found["machine"]["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{found['date']}, {machine['cores']} cores of {machine['processor']}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT")
    parser.add_argument("--peers", type=Path, default=PEERS)
    options = parser.parse_args()
    results = options.results or sorted(RESULTS.glob("sizes*.json"))[-1:]
    if not results:
        sys.exit("There is no sizes*.json yet: run benchmarks/sizes.py, or name a front.json.")
    try:
        ours = [entry for path in results for entry in our_entries(path)]
        peers = peer_entries(options.peers)
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"The results cannot be read: {error}")
    measured = json.loads(options.peers.read_bytes())["measured"]
    print(table(ours, peers))
    print(f"\nRivals: {measured['model']}, {measured['date']}, {measured['machine']}; {measured['perplexity']}.")
    print("† is helped by AMX. Their MB are weights and graph, ours everything in the folder.")
    for path in results:
        print(f"Ours: {path.name}, {origin(path)}.")


if __name__ == "__main__":
    main()
