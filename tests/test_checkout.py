"""The rooms at the top of the repository are found inside `edge_svd`, from a checkout as from an installation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "runtime"))

from runtime_tiny import make_weights, write_bundle  # noqa: E402

ROOMS = ("export", "kernels", "runtime", "recipes")


def python(folder: Path, code: str) -> str:
    """What a fresh Python in `folder` prints, nothing but that folder on its path."""
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key not in hidden},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def path_of_package(folder: Path, *imports: str) -> list[str]:
    """`edge_svd.__path__` after importing some modules."""
    lines = [*(f"import {name}" for name in imports), "import edge_svd", "print('\\n'.join(edge_svd.__path__))"]
    return python(folder, "\n".join(lines)).splitlines()


def test_a_checkout_finds_its_rooms() -> None:
    modules = [f"edge_svd.{room}" for room in ROOMS]
    found = path_of_package(ROOT, *modules, "edge_svd.runtime.schema", "edge_svd.cli")
    assert found == [str(ROOT / "edge_svd"), str(ROOT)]


def test_bench_works_from_a_checkout(tmp_path: Path) -> None:
    """The measuring process finds the package where its parent found it."""
    bundle = write_bundle(tmp_path / "bundle", make_weights())
    call = f"from edge_svd.runtime.bench import bench; print(bench({str(bundle)!r}, prompt_tokens=4, new_tokens=2))"
    assert "decode_tokens_per_s" in python(ROOT, call)


@pytest.mark.parametrize("inside", [True, False])
def test_only_a_checkout_adds_its_parent(inside: bool, tmp_path: Path) -> None:
    """A folder `runtime` of someone else beside an installed package is not ours."""
    (tmp_path / "edge_svd").mkdir()
    shutil.copy(ROOT / "edge_svd" / "__init__.py", tmp_path / "edge_svd")
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "schema.py").touch(exist_ok=True)
    if inside:
        (tmp_path / "edge_svd" / "runtime").mkdir()
    else:
        (tmp_path / "runtime" / "schema.py").unlink()
    assert path_of_package(tmp_path) == [str(tmp_path / "edge_svd")]
