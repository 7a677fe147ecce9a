"""Whether a model's weights stay in their files."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from edge_svd.errors import InputError

VARIABLE = "EDGE_SVD_STREAM"
CHOICES = ("always", "never")

SHARE = 0.25
"""Of the memory at hand that weights in fp32 may take: what is measured at them takes two to three times as much."""


def streams(numbers: int) -> bool:
    """Whether a model of so many weights is read from its files layer by layer: where it would take more than SHARE of
    the memory at hand in fp32, or as EDGE_SVD_STREAM says; InputError where that says something else."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", *CHOICES):
        raise InputError(f"{VARIABLE}={wanted!r} is unknown; it may be {' or '.join(CHOICES)}, or left unset.")
    if wanted:
        return wanted == "always"
    room = memory_at_hand()
    return room is not None and 4 * numbers > SHARE * room


def memory_at_hand() -> int | None:
    """Bytes that this process may still take, by the system's estimate and its own limit; None off Linux."""
    try:
        free = _kilobytes(Path("/proc/meminfo").read_text(), "MemAvailable")
        used = _kilobytes(Path("/proc/self/status").read_text(), "VmData")
    except OSError:
        return None
    if free is None:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY or used is None:
        return free
    return min(free, max(limit - used, 0))


def _kilobytes(text: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None
