"""What compare.json holds, put together from the rows on disk."""

from __future__ import annotations

from typing import Any

from edge_svd.calibrate.collect import inner_sites
from edge_svd.calibrate.statistics import Statistics
from edge_svd.compare.asked import Asked
from edge_svd.compare.measures import Measures
from edge_svd.compare.rows import Row, Rows
from edge_svd.models import OpenedModel
from edge_svd.planner.survey import candidate_kinds

FACTOR_BYTES = 2
"""Of a parameter, where factors are counted as they are usually published, in 16 bits."""

DENSE: dict[str, Any] = {
    "method": "dense",
    "allocation": None,
    "ratio": None,
    "size": None,
    "target": None,
    "heal": None,
    "factors": None,
}


def result(
    opened: OpenedModel, statistics: Statistics, asked: Asked, measures: Measures, dense: Row, rows: Rows
) -> Row:
    """Of complete rows; `dense`: perplexity and accuracy of the dense model by key."""
    sites = inner_sites(opened.sites)
    total = sum(site.shape[0] * site.shape[1] for site in sites)
    choices, table = [], []
    tasks = [DENSE | {"task": task.name} | dense[task.key] for task in measures.tasks]
    for cell in asked:
        row, fields = rows.of(cell), cell.fields
        size = row.get("bytes", FACTOR_BYTES * row["parameters"])
        choice = fields | {"parameters": row["parameters"], "bytes": size}
        more = {"ranks": row["ranks"], "seconds": row["seconds"], "added": row.get("added", {})}
        choices.append(choice | more | {"healing": row.get("healing", [])})
        for text in measures.texts:
            found = row["texts"][text.key]
            over = found["perplexity"] / dense[text.key]
            table.append(choice | {"text": text.name, **found, "over_dense": over})
        tasks += [fields | {"task": task.name} | row["tasks"][task.key] for task in measures.tasks]
    return {
        "model": {"name": opened.name, "digest": opened.digest, "parameters": total},
        "matrices": [{"name": s.name, "type": s.type, "layer": s.layer, "shape": list(s.shape)} for s in sites],
        "calibration": dict(statistics.key),
        "window": asked.window,
        "windows": asked.windows,
        "candidates": list(candidate_kinds(asked.candidates)) if asked.sizes else [],
        "texts": [{"name": text.name, "dense_perplexity": dense[text.key]} for text in measures.texts],
        "rows": table,
        "tasks": tasks,
        "choices": choices,
    }
