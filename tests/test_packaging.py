"""The wheel holds every module and data file, the top-level rooms inside `edge_svd`."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import edge_svd

ROOT = Path(__file__).parents[1]
ROOMS = ("export", "kernels", "runtime", "recipes")
DEVICE_SIDE = {"numpy", "onnxruntime", "tokenizers", "jinja2", "typer", "rich"}


def project() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder is left in the repository."""
    if importlib.util.find_spec("setuptools") is None:
        pytest.skip("building a wheel needs setuptools")
    copy = tmp_path_factory.mktemp("source")
    for name in ("edge_svd", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next((copy / "dist").glob("*.whl")))


def test_the_wheel_holds_every_file(wheel: zipfile.ZipFile) -> None:
    wanted = {"edge_svd/py.typed"}
    for folder, target in [("edge_svd", "edge_svd"), *((room, f"edge_svd/{room}") for room in ROOMS)]:
        for pattern in ("*.py", "*.toml", "*.jinja", "*.css", "*.js", "*.json"):
            wanted |= {f"{target}/{path.relative_to(ROOT / folder)}" for path in (ROOT / folder).rglob(pattern)}
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == wanted


def test_the_wheel_carries_the_version_and_the_licence(wheel: zipfile.ZipFile) -> None:
    info = f"edge_svd-{edge_svd.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    assert b"edge-svd = edge_svd.cli:main" in wheel.read(f"{info}/entry_points.txt")


def test_a_plain_install_is_the_device_side() -> None:
    names = {requirement.split(">=")[0] for requirement in project()["dependencies"]}
    assert names == DEVICE_SIDE
