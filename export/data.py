"""The data file: every weight at its offset, read from the checkpoint and written one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edge_svd.errors import Failure
from edge_svd.export.graph import Reader, Weight


def data_size(weights: Sequence[Weight]) -> int:
    """Bytes of the data file: up to the end of the last tensor."""
    return max((weight.offset + weight.length for weight in weights), default=0)


def write_data(
    path: Path, weights: Sequence[Weight], read: Reader, progress: Callable[[float], None] | None = None
) -> tuple[int, str]:
    """Write the file through a temporary sibling; returns (bytes, sha256).

    Raises OSError if the disk refuses, Failure if the checkpoint yields other byte counts than the graph was built for.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, position, total = hashlib.sha256(), 0, max(1, data_size(weights))
    try:
        with open(temporary, "wb") as handle:
            for weight in weights:
                gap = bytes(weight.offset - position)
                handle.write(gap)
                digest.update(gap)
                position = weight.offset
                for chunk in weight.chunks(read):
                    piece = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
                    handle.write(piece)
                    digest.update(piece)
                    position += len(piece)
                if position != weight.offset + weight.length:
                    raise Failure(
                        f"The checkpoint's {weight.name} has a size that its format does not have; write it again."
                    )
                if progress:
                    progress(position / total)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return position, digest.hexdigest()
