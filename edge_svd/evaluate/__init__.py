"""Quality on text: perplexity, and KL divergence to a dense reference."""

from __future__ import annotations
