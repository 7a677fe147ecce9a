"""The compressed checkpoint: a folder of safetensors with the rounded numbers that ship, and what goes with them.

    edge_svd_checkpoint.json   format version, architecture, the format of every matrix, plan, source model and digest
    weights/*.safetensors      `<site>.<suffix>` as `edge_svd.formats` names them, biases, effective norms, rotary
                               frequencies; one file a layer, so that writing streams and an interrupted run keeps
                               what it has
    companions/                config, tokenizer, licence, model card: copied into the bundle unchanged

numpy only: export reads it without torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edge_svd.architectures import Site, sites_of
from edge_svd.described import Described, described
from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json, writing
from edge_svd.formats import SiteFormat, tensors

FORMAT = 1
MANIFEST = "edge_svd_checkpoint.json"
WEIGHTS = "weights"
COMPANIONS = "companions"

NUMPY_DTYPES: dict[str, Any] = {
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int16": np.dtype(np.int16),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; tensors are read from the file one at a time."""

    path: Path
    architecture: Described
    formats: Mapping[str, SiteFormat]
    plan: Mapping[str, Any]
    source: Mapping[str, str]
    files: Mapping[str, str]

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Open and check a checkpoint folder; InputError if it is not one or its tensors disagree with its formats."""
        path = Path(path)
        manifest = read_json(path / MANIFEST, "checkpoint manifest")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(
                f"The checkpoint {path} has an unknown format version; this edge-svd reads version {FORMAT}."
            )
        try:
            architecture = described(manifest["architecture"])
            formats = {name: SiteFormat.from_json(value) for name, value in manifest["formats"].items()}
            plan, source = dict(manifest["plan"]), dict(manifest["source"])
        except (KeyError, AttributeError, TypeError) as error:
            raise InputError(f"The manifest of the checkpoint {path} lacks or misstates a field ({error}).") from None
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, str] = {}
        for file in sorted((path / WEIGHTS).glob("*.safetensors")):
            try:
                with safe_open(file, "np") as weights:
                    for name in weights.keys():
                        shapes[name] = tuple(weights.get_slice(name).get_shape())
                        files[name] = file.name
            except (OSError, SafetensorError) as error:
                raise InputError(f"The checkpoint's weights {file} cannot be read ({error}).") from None
        for site in sites_of(architecture):
            if site.tied_to:
                continue
            if site.name not in formats:
                raise InputError(f"The checkpoint {path} names no format for {site.name}.")
            for suffix, (_, shape) in tensors(site.shape, formats[site.name]).items():
                if shapes.get(f"{site.name}.{suffix}") != shape:
                    raise InputError(f"The checkpoint {path} lacks {site.name}.{suffix} with shape {shape}.")
        return cls(path, architecture, formats, plan, source, files)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all stored tensors."""
        return tuple(self.files)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every linear site and the embedding, in forward order; a tied head points to the embedding."""
        return sites_of(self.architecture)

    def tensor(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as a fresh numpy array (bfloat16 through ml_dtypes)."""
        if name not in self.files:
            raise InputError(f"The checkpoint {self.path} holds no tensor named {name}.")
        with safe_open(self.path / WEIGHTS / self.files[name], "np") as weights:
            return weights.get_tensor(name)

    @property
    def companions(self) -> dict[str, Path]:
        """Files that travel into the bundle unchanged, by name."""
        folder = self.path / COMPANIONS
        return {file.name: file for file in sorted(folder.iterdir()) if file.is_file()} if folder.is_dir() else {}


def save_weights(folder: Path, stem: str, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write one weights file of a checkpoint atomically."""
    target = folder / WEIGHTS / f"{stem}.safetensors"
    temporary = target.with_name(f".{stem}.tmp")
    with writing(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(str(error)) from error
        temporary.replace(target)


def has_weights(folder: Path, stem: str) -> bool:
    """Whether that weights file stands already."""
    return (folder / WEIGHTS / f"{stem}.safetensors").exists()


def finish_checkpoint(
    path: Path,
    architecture: Described,
    formats: Mapping[str, SiteFormat],
    plan: Mapping[str, Any],
    source: Mapping[str, str],
    companions: Mapping[str, bytes],
) -> None:
    """Write companions and, last of all, the manifest: a folder with a manifest is complete."""
    with writing(path):
        # A run killed while it wrote these leaves a temporary file, which must not travel into the bundle.
        shutil.rmtree(path / COMPANIONS, ignore_errors=True)
    for name, data in companions.items():
        atomic_write(path / COMPANIONS / name, data)
    manifest = {
        "format": FORMAT,
        "architecture": architecture.to_json(),
        "formats": {name: fmt.to_json() for name, fmt in formats.items()},
        "plan": dict(plan),
        "source": dict(source),
    }
    atomic_write(path / MANIFEST, canonical_json(manifest))


def write_checkpoint(
    path: Path,
    architecture: Described,
    formats: Mapping[str, SiteFormat],
    plan: Mapping[str, Any],
    source: Mapping[str, str],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    companions: Mapping[str, bytes],
) -> None:
    """Write a whole checkpoint folder at once."""
    save_weights(path, "model", tensors)
    finish_checkpoint(path, architecture, formats, plan, source, companions)
