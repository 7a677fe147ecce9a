"""Models larger than memory: weights stay in their files, and one layer at a time is there to compute."""

from __future__ import annotations
