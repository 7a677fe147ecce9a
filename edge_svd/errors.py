"""The workstation side's name for the shared errors; they live with the runtime because it imports nothing of ours."""

from __future__ import annotations

from edge_svd.runtime.errors import BudgetError, BundleError, EdgeSvdError, Failure, InputError

__all__ = ["BudgetError", "BundleError", "EdgeSvdError", "Failure", "InputError"]
