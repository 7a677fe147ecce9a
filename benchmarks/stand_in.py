"""Bundles with random numbers in place of weights: memory and speed depend on shapes and formats alone.

A bundle of any plan stands in seconds, without statistics and without compressing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_svd.architectures import cache_scale, sites_of
from edge_svd.checkpoint import NUMPY_DTYPES, write_checkpoint
from edge_svd.export.bundle import export_bundle
from edge_svd.formats import SiteFormat, tensors
from edge_svd.models import OpenedModel

CACHED = 0.05
"""Scales of an int8 KV cache."""

TINY = 1e-4
"""Scales of rows: every norm makes activations large again, and none overflows."""


def stand_in(
    opened: OpenedModel, formats: Mapping[str, SiteFormat], out: Path, context: int, kv_cache: str = "float32"
) -> Path:
    """Write a bundle of this model's shape in these formats into `out`; returns it."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for site in sites_of(opened.architecture):
        if site.tied_to:
            continue
        for suffix, (dtype, shape) in tensors(site.shape, formats[site.name]).items():
            arrays[f"{site.name}.{suffix}"] = _numbers(rng, suffix, dtype, shape)
        if site.bias:
            arrays[f"{site.name}.bias"] = np.zeros(site.shape[0], np.float32)
    arrays |= opened.other_tensors()
    if kv_cache == "int8":
        a = opened.architecture
        names = [cache_scale(layer, part) for layer in range(a.num_layers) for part in ("key", "value")]
        arrays |= {name: np.full(a.num_kv_heads * a.head_dim, CACHED, np.float32) for name in names}
    source = {"model": opened.name, "digest": opened.digest}
    checkpoint = out.with_name(out.name + ".checkpoint")
    write_checkpoint(
        checkpoint, opened.architecture, formats, {"kv_cache": kv_cache}, source, arrays, opened.companions
    )
    export_bundle(checkpoint, out, context=context, force=True)
    return out


def _numbers(rng: np.random.Generator, suffix: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = NUMPY_DTYPES[dtype]
    if suffix in ("order", "place"):
        return np.arange(shape[0]).astype(kind)
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    return np.full(shape, TINY, np.float32).astype(kind)
