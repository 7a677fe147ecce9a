"""A plan as a table: what was chosen for which type of matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_svd.files import format_size


def plan_table(plan: Mapping[str, Any]) -> str:
    """One row a matrix type: how many matrices take each format, mean rank, bytes, share of the predicted loss."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, site in plan["sites"].items():
        groups.setdefault(name.rsplit(".", 1)[-1], []).append(site)
    total = sum(site["loss"] for site in plan["sites"].values()) or 1.0
    rows = [("matrix", "int8", "16-bit", "factored", "mean rank", "bytes", "loss")]
    for kind, sites in groups.items():
        factored = [site["k8"] + site["k16"] for site in sites if "k8" in site]
        rows.append(
            (
                kind,
                str(sum(site["kind"] == "int8" for site in sites)),
                str(sum(site["kind"] == "int16" for site in sites)),
                str(len(factored)),
                f"{sum(factored) / len(factored):.0f}" if factored else "-",
                format_size(sum(site["bytes"] for site in sites)),
                f"{sum(site['loss'] for site in sites) / total:.1%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    predicted, limit = plan["predicted"], plan["targets"]["file_bytes"]
    return (
        f"{table}\n\n{plan['method']}, {plan['allocation']}: "
        f"{predicted['file_bytes']} bytes{f' of {limit}' if limit is not None else ''}, predicted peak "
        f"{format_size(predicted['peak_rss_bytes'])} at a context of {plan['context']}, "
        f"{predicted['decode_tokens_per_s']:.0f} tokens/s on {plan['device']}, KL "
        f"{predicted['kl']:.4f} nats per token, solver gap at most {plan['solver']['gap']:.3%}"
    )
