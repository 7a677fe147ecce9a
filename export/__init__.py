"""Checkpoint → ONNX bundle, the bundle's exact size before there are weights, and its proof against the checkpoint."""

from __future__ import annotations

from edge_svd.export.bundle import export_bundle
from edge_svd.export.size import exact_sizes

__all__ = ["exact_sizes", "export_bundle"]
