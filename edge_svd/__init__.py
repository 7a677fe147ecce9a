"""edge-svd: a language model and a memory budget in, the best model that fits out.

Importing this package is cheap: torch and transformers are imported only by the functions that compute.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from edge_svd.loading import load

# In a checkout the rooms export, kernels, runtime and recipes lie beside this package; an installation has them inside.
_HERE = Path(__file__).parent
if not (_HERE / "runtime").exists() and (_HERE.parent / "runtime" / "schema.py").is_file():
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    if name == "load":
        from edge_svd.loading import load

        return load
    raise AttributeError(f"module 'edge_svd' has no attribute {name!r}")
