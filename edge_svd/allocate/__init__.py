"""Rank-allocation strategies by name: how components are ordered and priced, and what every matrix keeps."""

from __future__ import annotations

from edge_svd.allocate import first_order, grouped, second_order, strs, uniform, zero_sum  # noqa: F401
from edge_svd.allocate.field import Field, lacking
from edge_svd.allocate.strategy import ALLOCATIONS, Strategy, allocation

__all__ = ["ALLOCATIONS", "Field", "Strategy", "allocation", "lacking"]
