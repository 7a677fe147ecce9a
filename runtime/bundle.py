"""Opening a bundle: everything is checked here before onnxruntime or the tokenizer sees a byte of it."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_svd.runtime import strict_json
from edge_svd.runtime.errors import BundleError, InputError
from edge_svd.runtime.onnx_external import MAX_GRAPH_BYTES, check_external_data
from edge_svd.runtime.schema import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MEASUREMENTS_BYTES,
    MEASUREMENTS_NAME,
    WEIGHTS_NAME,
    Manifest,
    unpack_measurements,
)

_Fingerprint = tuple[int, int, int, int]


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle; `fingerprints` recognise a file that was replaced after the check."""

    path: Path
    manifest: Manifest
    fingerprints: Mapping[str, _Fingerprint]

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole folder as it ships: listed files, manifest and measurements."""
        own = sum(
            (self.path / name).stat().st_size
            for name in (MANIFEST_NAME, MEASUREMENTS_NAME)
            if (self.path / name).exists()
        )
        return own + sum(entry.bytes for entry in self.manifest.files.values())

    def read(self, name: str) -> bytes:
        """The content of a listed file, its digest checked on the very bytes returned.

        BundleError if it is not listed or differs.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"The bundle {self.path} has no {name}; export it again.")
        with _open(self.path, name) as handle:
            data = handle.read(entry.bytes + 1)
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(self.path, name)
        return data

    def read_json(self, name: str) -> Any:
        """A listed JSON file; {} if the bundle does not have it, BundleError if it is not JSON."""
        if name not in self.manifest.files:
            return {}
        try:
            return strict_json.parse(self.read(name), max_bytes=MAX_MANIFEST_BYTES)
        except strict_json.JsonError as error:
            raise BundleError(f"In the bundle {self.path}, {name} {error}; export the bundle again.") from None

    def check_unchanged(self) -> None:
        """BundleError if a listed file is no longer the one that was checked."""
        for name, fingerprint in self.fingerprints.items():
            with _open(self.path, name) as handle:
                if _fingerprint(os.fstat(handle.fileno())) != fingerprint:
                    raise BundleError(
                        f"{name} in the bundle {self.path} was replaced while it was being opened; try again."
                    )


def open_bundle(path: Path | str, *, check_digests: bool = True) -> Bundle:
    """Check a bundle folder and return it.

    Checked in this order: manifest, kind and size of every file, digests (skipped with `check_digests=False`), the
    places in the weights file that both graphs name. InputError if there is no such folder, BundleError with the first
    fault otherwise.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"There is no bundle at {path}; check the path.")
    if not path.is_dir():
        raise BundleError(f"{path} is not a folder, so it is not a bundle; give the folder that holds {MANIFEST_NAME}.")
    if not os.path.lexists(path / MANIFEST_NAME):
        raise BundleError(f"{path} is not a bundle of edge-svd (it has no {MANIFEST_NAME}).")
    manifest = Manifest.from_bytes(_read_small(path, MANIFEST_NAME, MAX_MANIFEST_BYTES))
    if os.path.lexists(path / MEASUREMENTS_NAME):
        _read_small(path, MEASUREMENTS_NAME, MEASUREMENTS_BYTES)
    fingerprints = {}
    for name, entry in sorted(manifest.files.items()):
        with _open(path, name) as handle:
            status = os.fstat(handle.fileno())
        if status.st_size != entry.bytes:
            raise BundleError(
                f"{name} in the bundle {path} has {status.st_size} bytes instead of {entry.bytes}; copy the bundle "
                "again."
            )
        fingerprints[name] = _fingerprint(status)
    if check_digests:
        for name, entry in sorted(manifest.files.items()):
            with _open(path, name) as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                if digest != entry.sha256 or _fingerprint(os.fstat(handle.fileno())) != fingerprints[name]:
                    raise _damaged(path, name)
    for name in manifest.graphs:
        graph = _read_small(path, name, MAX_GRAPH_BYTES)
        check_external_data(graph, name=name, location=WEIGHTS_NAME, size=manifest.files[WEIGHTS_NAME].bytes)
    return Bundle(path, manifest, fingerprints)


def is_bundle(path: Path | str) -> bool:
    """Whether the folder is one of ours, damaged or not.

    It has a manifest that reads as JSON and states our schema and version.
    """
    path = Path(path)
    try:
        value = strict_json.parse(_read_small(path, MANIFEST_NAME, MAX_MANIFEST_BYTES), max_bytes=MAX_MANIFEST_BYTES)
    except (BundleError, OSError, ValueError):
        return False
    return isinstance(value, dict) and "schema" in value and "edge_svd" in value and "files" in value


def verify(path: Path | str) -> dict[str, Any]:
    """Check everything, digests and tokenizer included; BundleError with the first fault.

    Returns {"bundle", "files", "file_bytes", "unlisted"}: unlisted files are never read, so they are a note and no
    fault.
    """
    from edge_svd.runtime.tokenizer import load_tokenizer

    bundle = open_bundle(path)
    load_tokenizer(bundle)
    if (bundle.path / MEASUREMENTS_NAME).exists():
        read_measurements(bundle.path)
    known = {*bundle.manifest.files, MANIFEST_NAME, MEASUREMENTS_NAME}
    unlisted = sorted(name for name in os.listdir(bundle.path) if name not in known)
    return {
        "bundle": str(path),
        "files": len(bundle.manifest.files),
        "file_bytes": bundle.file_bytes,
        "unlisted": unlisted,
    }


def read_measurements(path: Path | str) -> dict[str, Any]:
    """What was measured on a bundle, {} if nothing was; BundleError if the file is damaged."""
    path = Path(path)
    if not os.path.lexists(path / MEASUREMENTS_NAME):
        return {}
    return unpack_measurements(_read_small(path, MEASUREMENTS_NAME, MEASUREMENTS_BYTES))


def _open(folder: Path, name: str) -> io.BufferedReader:
    """Open a regular file of the folder; links are not followed and a FIFO does not block."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    target = folder / name
    try:
        if target.is_symlink():
            raise OSError(errno.ELOOP, "symbolic link")
        descriptor = os.open(target, flags)
    except FileNotFoundError:
        raise BundleError(f"{name} is missing from the bundle {folder}; copy the bundle again.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BundleError(
                f"{name} in the bundle {folder} is a symbolic link; copy the bundle with its files."
            ) from None
        raise BundleError(f"{name} in the bundle {folder} cannot be read ({error.strerror}).") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{name} in the bundle {folder} is not a regular file; copy the bundle again.")
    return os.fdopen(descriptor, "rb")


def _read_small(folder: Path, name: str, limit: int) -> bytes:
    with _open(folder, name) as handle:
        data = handle.read(limit + 1)
    if len(data) > limit:
        raise BundleError(f"{name} in the bundle {folder} is larger than {limit} bytes; copy the bundle again.")
    return data


def _fingerprint(status: os.stat_result) -> _Fingerprint:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _damaged(folder: Path, name: str) -> BundleError:
    return BundleError(
        f"{name} in the bundle {folder} is damaged: its content is not what the manifest promises; copy the bundle "
        "again."
    )
