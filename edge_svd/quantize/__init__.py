"""Rounding: dense rows and rank components, to 8 or 16 bits."""

from __future__ import annotations
