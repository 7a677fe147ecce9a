"""Text, and what one streamed pass over it measures."""

from __future__ import annotations
