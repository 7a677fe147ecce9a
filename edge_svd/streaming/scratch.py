"""Tensors that a streamed model's planner keeps by the hundred: on disk, mapped, gone with the last look at them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_svd.files import cache_folder
from edge_svd.streaming.on_demand import is_streamed


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of its own below the cache, gone afterwards."""
    parent = cache_folder() / "scratch"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)


def kept(model: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a read-only copy in a file where the model's own weights lie in files too."""
    if not is_streamed(model) or not tensor.numel():
        return tensor
    folder = cache_folder() / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name: its space is free again with its last map
        content = tensor.detach().contiguous().numpy()
        file.write(content.data)
        file.flush()
        mapped = np.memmap(file, content.dtype, "r", shape=content.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the memory is not writable, which is meant so
        return torch.from_numpy(mapped)
