"""A plan as a table: what was chosen for which type of matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from edge_svd.files import format_size
from edge_svd.formats import WHOLE_PASS
from edge_svd.layouts import labels


def format_name(site: Mapping[str, Any]) -> str:
    """A matrix's format in a word or two; of factors and blocks without what tells them apart in detail."""
    if site["kind"] == "trellis":
        return f"{site['bits']} bits"
    if site["kind"] == "table":
        return "rows of " + "/".join(str(bits) for bits, _ in site["rows"]) + " bits"
    if site["kind"] == "blocks":
        return f"{site['bits']}-bit blocks of {site['block']}"
    if site["kind"] == "corrected":
        return f"{site['bits']}-bit blocks + rank {site['k8']}"
    if site["kind"] == "int8" and site.get("block") == WHOLE_PASS:
        return "int8, inputs on one scale"
    return "16 bits" if site["kind"] == "int16" else str(site["kind"])


def predicted_loss(plan: Mapping[str, Any]) -> str:
    """The loss that a plan predicts, with its name and unit."""
    loss = plan["predicted"]["kl"]
    own = plan["source"].get("loss")
    return f"predicted {own} {loss:.5f}" if own else f"KL {loss:.4f} nats per token"


def plan_table(plan: Mapping[str, Any]) -> str:
    """One row a matrix type: how many matrices take each format, bytes, share of the predicted loss."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    kinds = labels(plan["sites"])
    for name, site in plan["sites"].items():
        groups.setdefault(kinds[name], []).append(site)
    total = sum(site["loss"] for site in plan["sites"].values()) or 1.0
    rows = [("matrix", "formats", "bytes", "loss")]
    for kind, sites in groups.items():
        formats = Counter(format_name(site) for site in sites)
        rows.append(
            (
                kind,
                ", ".join(f"{count} x {name}" if len(sites) > 1 else name for name, count in sorted(formats.items())),
                format_size(sum(site["bytes"] for site in sites)),
                f"{sum(site['loss'] for site in sites) / total:.1%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    predicted, limit = plan["predicted"], plan["targets"]["file_bytes"]
    if "loss" in plan["source"]:
        return (
            f"{table}\n\n{plan['method']}, {plan['allocation']}: {predicted['file_bytes']} bytes of {limit}, "
            f"{predicted_loss(plan)}, solver gap at most {plan['solver']['gap']:.3%}"
        )
    return (
        f"{table}\n\n{plan['method']}, {plan['allocation']}: "
        f"{predicted['file_bytes']} bytes{f' of {limit}' if limit is not None else ''}, predicted peak "
        f"{format_size(predicted['peak_rss_bytes'])} at a context of {plan['context']}, "
        f"with a {plan['kv_cache']} KV cache, {predicted['decode_tokens_per_s']:.0f} tokens/s on {plan['device']}, "
        f"{predicted_loss(plan)}, solver gap at most {plan['solver']['gap']:.3%}"
    )
