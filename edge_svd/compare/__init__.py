"""Published methods side by side: equal parameters, the same calibration, the same text."""

from __future__ import annotations
