"""Reading and writing files: sizes as people write them, digests, atomic writes, deterministic JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_svd.errors import Failure, InputError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes from `64MB`, `64MiB`, `0.5GB` or plain bytes; InputError if it does not parse or is not positive."""
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else ""
    if match is None or unit not in _UNITS:
        raise InputError(f"Cannot read the size {text[:40]!r}; write it like 64MB, 64MiB, 0.5GB or a number of bytes.")
    value = float(match.group(1)) * _UNITS[unit]
    if not 1 <= value < 2**63:
        raise InputError(f"The size {text[:40]!r} must lie between one byte and 8 EiB.")
    return int(value)


def format_size(count: float, digits: int = 2) -> str:
    """Bytes as a person reads them, in decimal units, with so many digits behind the point."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.{digits}f} {unit}"
    return f"{count:.0f} B"


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any, *, indent: int | None = None) -> bytes:
    """Deterministic UTF-8 JSON (sorted keys, no NaN), ending in a newline."""
    separators = (",", ": ") if indent is not None else (",", ":")
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)
    return text.encode() + b"\n"


def read_json(path: Path, what: str) -> Any:
    """Parse a JSON file; InputError naming `what` and the path if it is missing or malformed."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"The {what} {path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"The {what} {path} cannot be read as JSON ({type(error).__name__}: {error}).") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error while writing below `path` into one sentence (disk full, no permission)."""
    try:
        yield
    except OSError as error:
        raise Failure(f"Writing {path} failed: {error.strerror or error}.") from error


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file through a temporary sibling, flushed to disk before the rename: no reader ever sees a half."""
    path = Path(path)
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as handle:
                handle.write(payload)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def drop_leftovers(folder: Path) -> None:
    """Remove what a run killed while it wrote has left in a folder of ours: names that begin with a dot, safetensors'
    own temporary files among them."""
    for file in folder.glob(".*") if folder.is_dir() else ():
        file.unlink()


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` where `target` stands: the old one is moved aside until the new one is in place."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            os.rename(target, aside)
        try:
            os.rename(new, target)
        except OSError:
            if aside.exists():
                os.rename(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def cache_folder() -> Path:
    """`EDGE_SVD_CACHE`, else `edge-svd` in the user's cache folder."""
    configured = os.environ.get("EDGE_SVD_CACHE")
    if configured:
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-svd"
