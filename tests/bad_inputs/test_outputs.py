"""Outputs: nobody's files are overwritten, and a full disk leaves nothing broken behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_input_tools import SIZE, Made, fit
from command_line import edge_svd


def snapshot(place: Path) -> dict[str, bytes | None]:
    """Every file below a place with its content."""
    return {str(path.relative_to(place)): path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "link", "below a file"])
def test_foreign_outputs_are_left_alone(kind: str, force: list[str], made: Made, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    target = place / "mine"
    if kind == "file":
        target.write_text("diary")
    elif kind == "link":
        target.symlink_to(made.bundle)
    elif kind == "below a file":
        target.write_text("diary")
        target = target / "out"
    else:
        target.mkdir()
        if kind == "folder":
            (target / "diary.txt").write_text("diary")
    before = snapshot(place)
    fit(made, target, *force).refused(2, str(target))
    edge_svd("export", made.checkpoint, "-o", target, *force).refused(2, str(target))
    if kind in ("file", "folder"):
        compress = ("compress", made.model, "--plan", made.plan, "--stats", made.stats)
        edge_svd(*compress, "-o", target, *force).refused(2, str(target))
        edge_svd("calibrate", made.model, *made.calibration, "-o", target).refused(2, str(target))
        edge_svd("plan", made.model, "--stats", made.stats, "--size", SIZE, "-o", target).refused(2, str(target))
    assert snapshot(place) == before


def test_ours_is_replaced_only_by_force(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "place"
    bundle = Path(shutil.copytree(made.bundle, place / "bundle"))
    checkpoint = Path(shutil.copytree(made.checkpoint, place / "checkpoint"))
    before = snapshot(place)
    compress = ("compress", made.model, "--plan", made.plan, "--stats", made.stats, "-o")
    fit(made, bundle).refused(2, "--force")
    edge_svd("export", made.checkpoint, "-o", bundle).refused(2, "--force")
    edge_svd(*compress, checkpoint).refused(2, "--force")
    edge_svd(*compress, bundle, "--force").refused(2, "not a checkpoint")
    edge_svd("export", made.checkpoint, "-o", checkpoint, "--force").refused(2, "not an edge-svd bundle")
    assert snapshot(place) == before
    assert edge_svd("export", made.checkpoint, "-o", bundle, "--force").code == 0
    assert edge_svd(*compress, checkpoint, "--force").code == 0
    assert snapshot(place) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a file system of so many kB; needs root."""
    place = tmp_path / "disk"

    def mount(kilobytes: int) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "edge-svd-test", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
            pytest.skip("needs root and permission to mount a tmpfs")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [40, 130, 260, 400])
def test_disk_full(kilobytes: int, made: Made, small_disk: Callable[[int], Path]) -> None:
    """At the first weights, between two layers, at the bundle's weights, at one of its small files."""
    disk = small_disk(kilobytes)
    fit(made, disk / "out").refused(1, "No space left on device", str(disk))
    assert {path.name for path in disk.iterdir()} <= {"out.partial"}
    assert not [path for path in disk.rglob("*") if path.name.endswith((".tmp", ".old"))]
    shutil.rmtree(disk / "out.partial", ignore_errors=True)
    if kilobytes < 260:
        edge_svd("export", made.checkpoint, "-o", disk / "out").refused(1, "No space left on device")
        assert list(disk.iterdir()) == []
