"""The folder of a comparison: compare.json and the page that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json
from edge_svd.report.compare_page import compare_page

DATA, PAGE = "compare.json", "index.html"


def refuse_other(folder: Path, force: bool) -> None:
    """InputError where the folder holds anything but a comparison, or one and `force` does not allow replacing it."""
    if not folder.exists():
        return
    if not folder.is_dir() or any(file.name not in (DATA, PAGE) for file in folder.iterdir()):
        raise InputError(f"{folder} exists and does not hold a comparison of ours; choose another output folder.")
    if (folder / DATA).exists() and not force:
        raise InputError(f"{folder} holds a comparison; pass --force to replace it (rows are never measured twice).")


def write_folder(folder: Path, found: Mapping[str, Any]) -> None:
    """Write the data and then the page, each in one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / DATA, canonical_json(dict(found), indent=1))
    atomic_write(folder / PAGE, compare_page(found))
