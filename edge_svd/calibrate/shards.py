"""Named tensors in a folder of safetensors files, one a layer: neither writing nor reading holds a second copy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edge_svd.errors import InputError
from edge_svd.layouts import layer_of


def shard_of(name: str) -> str:
    """The file that a tensor of this name lies in."""
    layer = layer_of(name)
    return f"layer-{layer:04d}.safetensors" if layer is not None else "rest.safetensors"


def save_shards(folder: Path, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> None:
    """Write every named tensor, file by file, into a new folder that then takes the place of `folder` in one rename."""
    fresh, aside = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (fresh, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(shard_of(name), []).append(name)
    for members in groups.values():
        try:
            save_shard(fresh, {name: read(name) for name in members})
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
    if folder.exists():
        os.rename(folder, aside)
    os.rename(fresh, folder)
    shutil.rmtree(aside, ignore_errors=True)


def save_shard(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write the tensors of one file of an existing folder, under its name once it is complete."""
    (file,) = {shard_of(name) for name in tensors}
    fresh = folder / f".{file}.new"
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh)
    except SafetensorError as error:
        fresh.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    os.replace(fresh, folder / file)


def read_tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor; InputError if it is missing or unreadable."""
    try:
        with safe_open(folder / shard_of(name), "pt") as handle:
            return handle.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The folder {folder} lacks {name} ({error}); calibrate again.") from None
