"""Tensors of safetensors files as read-only maps: nothing is copied, and the system may drop pages at any time."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from edge_svd.errors import InputError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<i2"}  # numpy has no bfloat16


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: bytes `start` to `end` of a file, and what they are."""

    file: Path
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]


class MappedFiles:
    """All tensors of safetensors files, by name."""

    def __init__(self, files: Iterable[Path]) -> None:
        """InputError, one sentence, if a file is damaged, or two hold a tensor of the same name."""
        self.places: dict[str, Place] = {}
        for file in files:
            for name, place in _places(file):
                if name in self.places:
                    raise InputError(f"The tensor {name} lies in both {self.places[name].file.name} and {file.name}.")
                self.places[name] = place

    @property
    def numbers(self) -> int:
        """How many all tensors hold."""
        return sum(math.prod(place.shape) for place in self.places.values())

    def tensor(self, name: str) -> torch.Tensor:
        """In the dtype of its file; writing to it ends the process. InputError where that is none of DTYPES."""
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise InputError(f"The tensor {name} in {place.file} is of type {place.dtype}; known: {', '.join(DTYPES)}.")
        kind = np.dtype(_PLAIN[place.dtype])
        if place.end == place.start:
            return torch.zeros(place.shape, dtype=DTYPES[place.dtype])
        # A map may only begin at a multiple of the page size, which numpy sees to.
        flat = np.memmap(place.file, kind, "r", place.start, ((place.end - place.start) // kind.itemsize,))
        return read_only(flat).view(DTYPES[place.dtype]).view(place.shape)


def read_only(mapped: np.memmap[Any, Any]) -> torch.Tensor:
    """A map's memory as a tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the memory is not writable, which is meant so
        return torch.from_numpy(mapped)


def _places(file: Path) -> list[tuple[str, Place]]:
    try:
        with safe_open(file, "np"):  # checks the header: sizes, bounds, overlaps
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"The weights in {file} cannot be opened ({error}); get the file again.") from None
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        found.append((name, Place(file, 8 + length + start, 8 + length + end, entry["dtype"], tuple(entry["shape"]))))
    return found
