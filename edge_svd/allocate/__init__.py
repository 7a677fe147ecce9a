"""Rank-allocation strategies by name: how components are ordered and priced, and what every matrix keeps."""

from __future__ import annotations

from edge_svd.allocate import (  # noqa: F401  (each registers itself)
    first_order,
    grouped,
    second_order,
    second_order_measured,
    strs,
    uniform,
    zero_sum,
)
from edge_svd.allocate.field import Field, lacking
from edge_svd.allocate.strategy import ALLOCATIONS, Strategy, allocation

__all__ = ["ALLOCATIONS", "Field", "Strategy", "allocation", "lacking"]
