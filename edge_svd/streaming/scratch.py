"""Tensors that a streamed model's planner keeps by the hundred: on disk, mapped, gone with the last look at them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.files import cache_folder
from edge_svd.streaming.mapped_files import read_only
from edge_svd.streaming.on_demand import is_streamed


def _folder() -> Path:
    folder = cache_folder() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of its own below the cache, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=_folder()) as folder:
        yield Path(folder)


def kept(model: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a read-only copy in a file where the model's own weights lie in files too."""
    if not is_streamed(model) or not tensor.numel():
        return tensor
    with tempfile.TemporaryFile(dir=_folder()) as file:  # without a name: its space is free again with its last map
        content = tensor.detach().contiguous().numpy()
        file.write(content.data)
        file.flush()
        return read_only(np.memmap(file, content.dtype, "r", shape=content.shape))
