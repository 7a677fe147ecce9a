"""Hidden states of many windows in a file, one window in memory at a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch


class Spill:
    """Tensors of one shape, fp32; the file has its name once all are written."""

    def __init__(self, path: Path, count: int, shape: tuple[int, ...]) -> None:
        self.path, self.count, self.shape = path, count, shape
        self._fresh = path.with_name(f".{path.name}.new")
        self._size = int(np.prod(shape))

    @property
    def finished(self) -> bool:
        """Whether the file is complete."""
        return self.path.exists()

    def write(self, number: int, tensor: torch.Tensor) -> None:
        """In order, from number 0 on."""
        with self._fresh.open("r+b" if number else "wb") as handle:
            handle.seek(4 * self._size * number)
            handle.write(tensor.detach().to(torch.float32).contiguous().numpy().tobytes())

    def finish(self) -> None:
        """All are written."""
        os.replace(self._fresh, self.path)

    def read(self, number: int) -> torch.Tensor:
        """A copy of its own."""
        flat = np.fromfile(self.path, np.float32, self._size, offset=4 * self._size * number)
        return torch.from_numpy(flat).view(self.shape)

    def drop(self) -> None:
        """The file is not needed any more."""
        self.path.unlink(missing_ok=True)
        self._fresh.unlink(missing_ok=True)
