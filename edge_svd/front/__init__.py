"""The size/quality/speed front of a model: many targets from one calibration and one price list."""

from __future__ import annotations
