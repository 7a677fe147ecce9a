"""Rank-allocation strategies by name (uniform, first-order, second-order): how components are ordered and priced."""

from __future__ import annotations

from edge_svd.allocate import first_order, second_order, uniform
from edge_svd.allocate.strategy import ALLOCATIONS, Strategy, allocation

__all__ = ["ALLOCATIONS", "Strategy", "allocation", "first_order", "second_order", "uniform"]
