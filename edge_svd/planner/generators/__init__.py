"""Candidate generators by name; importing this package registers all of them."""

from __future__ import annotations

from edge_svd.planner.generators import blocks, corrected, dense, low_rank, pivoted, trellis
from edge_svd.planner.generators.context import GENERATORS, SiteContext

__all__ = ["GENERATORS", "SiteContext", "blocks", "corrected", "dense", "low_rank", "pivoted", "trellis"]
