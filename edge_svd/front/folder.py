"""The folder of a front: front.json and index.html, rewritten after every point, `points` and `bundles` beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_svd.errors import InputError
from edge_svd.files import atomic_write, canonical_json, read_json
from edge_svd.report.front_page import front_page

FORMAT = "edge-svd front 1"
DATA, PAGE = "front.json", "index.html"


def refuse_foreign_front(folder: Path) -> None:
    """InputError if `folder` stands and is neither empty nor the folder of a front."""
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} exists and is not a folder; choose another output folder.")
    if any(folder.iterdir()) and _standing(folder) is None:
        raise InputError(f"{folder} exists and is not the folder of a front; choose another output folder.")


def refuse_other_front(folder: Path, inputs: Mapping[str, Any], force: bool) -> None:
    """InputError if the front in `folder` is of another model or other options and `force` does not allow replacing it.

    Other targets of the same model are no obstacle: the points that they share are kept.
    """
    standing = _standing(folder)
    if standing is None or standing.get("inputs") == dict(inputs) or force:
        return
    raise InputError(
        f"{folder} holds the front of another model or of other options; choose another folder, or --force replaces it."
    )


def write_front(folder: Path, front: Mapping[str, Any]) -> None:
    """Write the data and then the page that shows them, each in one rename."""
    atomic_write(folder / DATA, canonical_json(dict(front), indent=1))
    atomic_write(folder / PAGE, front_page(front))


def read_front(path: Path) -> dict[str, Any]:
    """The content of a front.json, or of the one in a front's folder; InputError if it is none of ours."""
    file = path / DATA if path.is_dir() else path
    found = read_json(file, "front")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{file} is not a front of this edge-svd.")
    return found


def _standing(folder: Path) -> dict[str, Any] | None:
    try:
        return read_front(folder)
    except InputError:
        return None
