"""How a comparison's rows and numbers are called on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_svd.compare.storage import PIVOTED
from edge_svd.files import format_size
from edge_svd.heal import NONE

Key = tuple[str, str | None, bool, str | None]


def key(row: Mapping[str, Any]) -> Key:
    """What a line of a table, or a series of a chart, has in common: method, allocation, pivoted or not, healing."""
    return row["method"], row["allocation"], row["factors"] == PIVOTED, row["heal"]


def label(row: Mapping[str, Any]) -> str:
    """`svd, uniform`, pivoted where its factors are, and how it is healed where it is."""
    more = [PIVOTED] * (row["factors"] == PIVOTED) + [row["heal"]] * (row["heal"] != NONE)
    return ", ".join([row["method"], row["allocation"], *more])


def amount(row: Mapping[str, Any]) -> str:
    """The ratio, the size or the target that was asked for."""
    if row["size"] is not None:
        return format_size(row["size"], 1)
    return f"{row['ratio']:g}" if row["target"] is None else f"≤ {row['target']:g}x"


def healed(found: Mapping[str, Any]) -> bool:
    """Whether anything in a compare.json is healed."""
    return any(choice["heal"] != NONE for choice in found["choices"])


def pivoted(found: Mapping[str, Any]) -> bool:
    """Whether any factors in a compare.json are."""
    return any(choice["factors"] == PIVOTED for choice in found["choices"])


def number(perplexity: float) -> str:
    """Four figures; powers of ten where a model is beyond use."""
    return (
        f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.0f}" if perplexity < 1e5 else f"{perplexity:.1e}"
    )


def share(value: float, error: float | None) -> str:
    """An accuracy from 0 to 1 with its standard error, where there is one, in percent: `41.3 ± 1.6`."""
    return f"{100 * value:.1f}" if error is None else f"{100 * value:.1f} ± {100 * error:.1f}"
