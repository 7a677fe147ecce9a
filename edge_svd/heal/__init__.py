"""What is done to factors after a decomposition made them, on calibration text: `healing("refit+distil:steps=300")`."""

from __future__ import annotations

from edge_svd.heal import distil, refit  # noqa: F401  (each registers itself)
from edge_svd.heal.registry import HEALINGS, NONE, Patient, healing
from edge_svd.heal.steps import Healed, heal

__all__ = ["HEALINGS", "NONE", "Healed", "Patient", "heal", "healing"]
