"""`methods` and `recipes`: lists of what can be named on the command line."""

from __future__ import annotations

from typing import Any

from edge_svd.recipe import list_recipes
from edge_svd.registry import Registry


def method_list() -> dict[str, Any]:
    """Names and one-line summaries of decompositions, allocations, ways of healing and candidate kinds."""
    from edge_svd.allocate import ALLOCATIONS
    from edge_svd.decompose import DECOMPOSITIONS
    from edge_svd.heal import HEALINGS
    from edge_svd.planner.generators import GENERATORS

    groups: dict[str, Registry[Any]] = {
        "methods": DECOMPOSITIONS,
        "allocations": ALLOCATIONS,
        "healing": HEALINGS,
        "candidates": GENERATORS,
    }
    return {
        title: [{"name": name, "summary": registry.summary(name)} for name in registry.names]
        for title, registry in groups.items()
    }


def method_text(found: dict[str, Any]) -> str:
    """The same for a person."""
    blocks = []
    width = 2 + max(len(row["name"]) for rows in found.values() for row in rows)
    for title, rows in found.items():
        blocks.append("\n".join([f"{title}:", *(f"  {row['name']:<{width}}{row['summary']}" for row in rows)]))
    return "\n".join(blocks)


def recipe_list() -> dict[str, Any]:
    """Shipped recipes with what they do."""
    rows = [
        {"name": recipe.name, "summary": recipe.summary, "model": recipe.model} | recipe.options()
        for recipe in list_recipes()
    ]
    return {"recipes": rows}


def recipe_text(found: dict[str, Any]) -> str:
    """The same for a person, one line each."""
    width = max((len(row["name"]) for row in found["recipes"]), default=0)
    return "\n".join(f"{row['name']:<{width}}  {row['summary']}" for row in found["recipes"])
