"""edge-svd: a language model and a memory budget in, the best model that fits out.

Importing this package is cheap: torch and transformers are imported only by the functions that compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from edge_svd.loading import load


def __getattr__(name: str) -> Any:
    if name == "load":
        from edge_svd.loading import load

        return load
    raise AttributeError(f"module 'edge_svd' has no attribute {name!r}")
