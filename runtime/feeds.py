"""Inputs of a session, in buffers that stay where they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime

Array = np.ndarray[Any, Any]


class Feeds:
    """Binds an input anew only where its shape changes: that takes ten microseconds each time, a copy takes one."""

    def __init__(self, binding: onnxruntime.IOBinding) -> None:
        self._binding = binding
        self._buffers: dict[str, Array] = {}

    def give(self, name: str, values: Array) -> None:
        """Let the next pass read a copy of `values`."""
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.shape == values.shape:
            buffer[...] = values
            return
        buffer = self._buffers[name] = np.array(values)
        self._binding.bind_input(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)
