"""What the table and the page read out of a front.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_svd.formats import SiteFormat


@dataclass(frozen=True)
class Alone:
    """The best that one technique alone does within a target: its family, bytes, and predicted KL in nats per token."""

    family: str
    file_bytes: int
    kl: float


def spent(front: Mapping[str, Any]) -> str:
    """The figure that the targets of the front limit."""
    return "peak_rss_bytes" if front["rows"][0]["target"]["kind"] == "ram" else "file_bytes"


def best_alone(front: Mapping[str, Any], row: Mapping[str, Any]) -> Alone | None:
    """The single technique with the least predicted KL within the row's target; None if none reaches it."""
    found = [
        Alone(family, point["file_bytes"], point["kl"])
        for family, points in curves_of(front)
        for point in points
        if point["kl"] is not None and point["target"] == row["target"]
    ]
    return min(found, key=lambda alone: alone.kl, default=None)


def curves_of(front: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Each technique alone with its points, in the order of the candidates (a JSON file has them sorted by name)."""
    return [(family, front["curves"][family]) for family in front["inputs"]["candidates"] if family in front["curves"]]


def family_order(front: Mapping[str, Any]) -> list[str]:
    """All families of the front, those that the planner was given first: their numbers are their colours."""
    used: list[str] = list(front["inputs"]["candidates"])
    for row in front["rows"]:
        for entry in row["plan"]["sites"].values() if row["reachable"] else ():
            used.append(format_of(entry).family)
    return list(dict.fromkeys(used))


def format_of(entry: Mapping[str, Any]) -> SiteFormat:
    """The format in a plan's entry for one matrix."""
    return SiteFormat.from_json({key: value for key, value in entry.items() if key not in ("bytes", "loss")})
