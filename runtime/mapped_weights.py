"""Pages of the weights file that onnxruntime has mapped: given back, since they can be read again.

Weights that a kernel packs are read once, and rows of the embedding are looked up one at a time, but what was read
stays resident, and Linux maps sixteen pages around every row: after a few hundred tokens the whole table. Dropping the
pages costs no more than a minor fault when a row is read again.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

RELEASED_EVERY = 64
"""Tokens after which what they looked up is given back."""

_DONTNEED = 4  # of sys/mman.h on Linux, whatever the processor
_SMAPS = Path("/proc/self/smaps")


class MappedWeights:
    """The mappings of one file in this process, as they are now; none where there is no /proc."""

    def __init__(self, path: Path) -> None:
        # A private page that was written to exists nowhere else: such a mapping is left alone.
        self._regions = [(start, size) for start, size, written in _mappings(path) if not written]
        self._madvise = getattr(ctypes.CDLL(None), "madvise", None) if self._regions else None
        if self._madvise is not None:
            self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._tokens = 0

    def release(self) -> None:
        """Give the pages back now."""
        self._tokens = 0
        for start, size in self._regions if self._madvise is not None else ():
            self._madvise(start, size, _DONTNEED)  # what cannot be given back just stays

    def looked_up(self, tokens: int) -> None:
        """So many rows were read: give them back when it has been enough of them."""
        self._tokens += tokens
        if self._tokens >= RELEASED_EVERY:
            self.release()


def _mappings(path: Path) -> Iterator[tuple[int, int, bool]]:
    """(first address, bytes, whether a page was written to) of every mapping of a file."""
    if sys.platform != "linux":
        return
    try:
        inode, lines = str(path.stat().st_ino), _SMAPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    found: tuple[int, int] | None = None
    for line in lines:
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            start, stop = (int(word, 16) for word in words[0].split("-"))
            found = (start, stop - start) if words[4] == inode and line.endswith(path.name) else None
        elif found is not None and words[0] == "Anonymous:":
            yield *found, words[1] != "0"
