"""`inspect`: what is in a bundle or a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_svd.files import format_size
from edge_svd.planner.plan import Plan
from edge_svd.report.plan_table import plan_table


def inspection(target: Path) -> dict[str, Any]:
    """The manifest of a bundle, or a plan; InputError or BundleError for anything else."""
    if target.is_file():
        return {"plan": Plan.read(target).to_json()}
    from edge_svd.runtime.commands import inspect

    return inspect(target)


def inspection_text(found: dict[str, Any]) -> str:
    """The same for a person."""
    table = plan_table(found["plan"]) if "sites" in found["plan"] else ""
    if "files" not in found:
        return table
    model, measured = found["model"], found["measurements"].get("measured", {})
    lines = [
        f"{found['source']['model']} "
        f"({model['family']}, {model['num_layers']} layers, vocabulary {model['vocab_size']})",
        f"context {model['max_context']}, {format_size(found['file_bytes'])} in {len(found['files']) + 2} files",
    ]
    lines += [f"measured {key}: {value}" for key, value in measured.items()]
    return "\n".join([*lines, "", table])
