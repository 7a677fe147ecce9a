"""Quality: perplexity, KL divergence to a dense reference, and accuracy on multiple-choice items."""

from __future__ import annotations
