"""From candidates per matrix to a plan that meets a budget. Knows bytes and predicted loss, nothing of how a candidate is made."""

from __future__ import annotations
