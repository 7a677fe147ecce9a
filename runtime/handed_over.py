"""Memory of initializers that were computed for onnxruntime, given back once the session is made.

onnxruntime asks that what it is handed outlives the session. But of matrices it keeps a copy, or what its kernels pack
of them, and of scales what the kernels packed along. Whether that holds for the version and the kernels of this machine
is tried out: the pages are dropped, and unless the logits of a few tokens stay the same to the last bit, everything is
computed once more.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime

from edge_svd.runtime.memory import release_free_memory
from edge_svd.runtime.schema import COLUMNS, EMBEDDED, KEYS, KV_DTYPES, LAST_KEY, PLACES

Array = np.ndarray[Any, Any]

CACHE_TYPES = {kind: np.dtype(name) for name, kind in KV_DTYPES.items()}
"""onnxruntime's name of what a KV cache holds → numpy's."""

PROBE = (1, 2, 3, 4)
"""Tokens whose logits are compared."""


class HandedOver:
    """Arrays by initializer name, each in pages of its own where pages can be dropped."""

    def __init__(self, makers: Mapping[str, Callable[[], Array]]) -> None:
        self._makers = dict(makers)
        self._pages: dict[str, mmap.mmap] = {}
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._arrays: dict[str, Array] = {}
        self.dropped: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that were made."""
        return tuple(self._arrays)

    def array(self, name: str) -> Array:
        """The memory that onnxruntime was handed: zeros where it was given back."""
        return self._arrays[name]

    def make(self, name: str) -> onnxruntime.OrtValue:
        """Compute one of them."""
        found = self._makers[name]()
        if sys.platform == "linux" and found.size:
            pages = mmap.mmap(-1, found.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._pages[name] = pages
            own = np.frombuffer(pages, found.dtype).reshape(found.shape)
            own[...] = found
            found = own
        self._arrays[name] = found
        self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(found)
        return self._values[name]

    def give_back(self, session: onnxruntime.InferenceSession) -> None:
        """Drop the pages if `session` has no need of them: their names are `dropped` then."""
        if not self._pages:
            return
        try:
            before = _outputs(session)
        except Exception:  # what is wrong with the graph is said where it is used
            return
        for pages in self._pages.values():
            pages.madvise(mmap.MADV_DONTNEED)  # private anonymous pages: gone, and zeros when read again
        if np.array_equal(before, _outputs(session)):
            self.dropped = tuple(self._pages)
        else:
            for name in self._pages:
                self._arrays[name][...] = self._makers[name]()
        self._makers.clear()  # they hold views of the mapped file
        release_free_memory()


def _outputs(session: onnxruntime.InferenceSession) -> np.ndarray[Any, Any]:
    """The first output (logits, or hidden states) behind the probing tokens and an empty cache."""
    count = len(PROBE)
    rows = {"input_ids": list(PROBE), "attention_mask": [1] * count, "position_ids": list(range(count))}
    rows |= {"token_type_ids": [0] * count, PLACES: list(range(count))}
    spans = {LAST_KEY: count - 1, KEYS: count}
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for item in session.get_inputs():
        if item.name in rows:
            feeds[item.name] = np.array([rows[item.name]], np.int64)
        elif item.name in spans:
            feeds[item.name] = np.array([spans[item.name]], np.int32)
        elif item.name == COLUMNS:
            feeds[item.name] = np.full((1, 1, 1), count - 1, np.int64)
        elif item.name == EMBEDDED:
            width = item.shape[2]
            feeds[item.name] = np.sin(np.arange(1, count * width + 1, dtype=np.float32)).reshape(1, count, width)
        else:
            feeds[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), CACHE_TYPES[item.type])
    return np.asarray(session.run([session.get_outputs()[0].name], feeds)[0])
