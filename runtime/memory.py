"""How much memory this process took at its worst, from /proc; None where there is no /proc."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_SMAPS = Path("/proc/self/smaps")
_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d*\s+/.*(?<! \(deleted\))")
"""A line of smaps: code of a file, unwritable and private."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of malloc.h
_MOST_KEPT = 32 * 2**20
"""Where glibc's own, growing threshold ends on 64 bits."""


def peak_rss_bytes() -> int | None:
    """Peak resident bytes of this process, file-backed pages included.

    VmHWM: getrusage's figure starts at the parent's size.
    """
    return _field("VmHWM")


def anonymous_bytes() -> int | None:
    """Resident bytes now that no file backs, so that cannot be evicted."""
    return _field("RssAnon")


def file_bytes() -> int | None:
    """Resident bytes now that a file backs: libraries, and weights that stay mapped."""
    return _field("RssFile")


def mapped_bytes(path: Path) -> int:
    """Resident bytes of this process's mappings of a file; 0 where there is no /proc."""
    total, inside, wanted = 0, False, str(path.absolute())
    try:
        lines = Path("/proc/self/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    for line in lines:
        words = line.split()
        if words and "-" in words[0] and not words[0].endswith(":"):
            inside = line.endswith(wanted)
        elif inside and words[0] == "Rss:":
            total += int(words[1]) * 1024
    return total


@contextmanager
def large_blocks_returned() -> Iterator[None]:
    """Inside, what takes 64 KiB or more goes back to the system as soon as it is freed, where the C library is glibc.

    By itself glibc keeps freed blocks of up to 32 MiB once it has seen some of that size. While onnxruntime packs
    weights, that is tens of megabytes more at the peak, and never the same twice. Afterwards it keeps them again.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tell is None:
        yield
        return
    tell(_MMAP_THRESHOLD, 64 * 1024)
    try:
        yield
    finally:
        tell(_MMAP_THRESHOLD, _MOST_KEPT)
        tell(_TRIM_THRESHOLD, 2 * _MOST_KEPT)


def release_free_memory() -> None:
    """Give memory that was freed but kept by the C library back to the system, where that library is glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def release_code_pages() -> None:
    """Give back pages of code, on Linux: a third of what a small model's process holds is code that ran once, while
    libraries and the session were made.

    What runs again comes back from the page cache, or from disk if the system has used that memory otherwise. Only
    mappings in which nothing was changed are touched.
    """
    advise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if advise is None:
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    try:
        lines = _SMAPS.read_text(errors="replace").splitlines()
    except OSError:
        return
    found: re.Match[str] | None = None
    for line in lines:
        if not line[0].isupper():
            found = _CODE.fullmatch(line)
        elif found and line.startswith("Private_Dirty:") and line.split()[1] == "0":
            start, end = (int(place, 16) for place in found.groups())
            advise(start, end - start, mmap.MADV_DONTNEED)


def _field(name: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


class PeakAnonymous:
    """Samples anonymous memory in a thread (the kernel keeps no peak of it); `.peak` is in bytes, None off Linux."""

    def __init__(self, interval: float = 0.01) -> None:
        self.peak = anonymous_bytes()
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.peak is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.sample()

    def sample(self) -> None:
        """Take one sample now."""
        now = anonymous_bytes()
        if now is not None and self.peak is not None:
            self.peak = max(self.peak, now)

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
