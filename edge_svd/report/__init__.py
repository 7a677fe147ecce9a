"""Results as a person reads them; this package needs nothing beyond the runtime."""

from __future__ import annotations
