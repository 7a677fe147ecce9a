"""From candidates per matrix to a plan that meets a budget; knows bytes and loss, not how a candidate is made."""

from __future__ import annotations
