"""Pages of mapped files: given back, read again, and never where something was written to them."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
from runtime_tiny import make_weights, write_bundle

from edge_svd.runtime import mapped_weights
from edge_svd.runtime.bundle import open_bundle
from edge_svd.runtime.mapped_weights import RELEASED_EVERY, MappedWeights
from edge_svd.runtime.memory import mapped_bytes
from edge_svd.runtime.session import Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/smaps")

SIZE = 4 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file.data"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def mapped(path: Path, access: int) -> tuple[mmap.mmap, np.ndarray]:
    with open(path, "rb") as handle:
        pages = mmap.mmap(handle.fileno(), 0, access=access)
    array = np.frombuffer(pages, np.uint8)
    assert array.sum(dtype=np.int64) > 0  # reads every page
    return pages, array


@pytest.mark.parametrize("access", (mmap.ACCESS_READ, mmap.ACCESS_COPY))
def test_pages_are_given_back_and_read_again(file: Path, access: int) -> None:
    _pages, array = mapped(file, access)
    assert mapped_bytes(file) == SIZE
    weights = MappedWeights(file)
    weights.release()
    assert mapped_bytes(file) == 0
    assert array.tobytes() == file.read_bytes()
    weights.looked_up(RELEASED_EVERY - 1)
    assert mapped_bytes(file) == SIZE
    weights.looked_up(1)
    assert mapped_bytes(file) == 0


def test_a_mapping_that_was_written_to_is_left_alone(file: Path) -> None:
    pages, array = mapped(file, mmap.ACCESS_COPY)
    pages[5] = (pages[5] + 1) % 256
    changed = array.tobytes()
    MappedWeights(file).release()
    assert array.tobytes() == changed != file.read_bytes()


def test_other_files_are_left_alone(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "b" / file.name
    other.parent.mkdir()
    other.write_bytes(bytes(SIZE))
    _pages, _array = mapped(file, mmap.ACCESS_READ)
    MappedWeights(other).release()
    MappedWeights(tmp_path / "none").release()
    assert mapped_bytes(file) == SIZE


def test_a_session_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "bundle", make_weights()))
    ids = list(range(40))
    expected = Session(bundle, threads=1).prefill(ids).copy()
    monkeypatch.setattr(mapped_weights, "RELEASED_EVERY", 1)
    session = Session(bundle, threads=1)
    for token in ids:
        found = session.step(token)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)
    assert mapped_bytes(bundle.path / "model.onnx.data") == 0
