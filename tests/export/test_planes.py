"""Integers as bytes, against plain arithmetic at the extremes."""

from __future__ import annotations

import numpy as np

from edge_svd.export import planes
from edge_svd.formats import SiteFormat


def test_every_int8_and_int16_survives() -> None:
    narrow = np.arange(-127, 128, dtype=np.int8)
    assert np.array_equal(planes.bytes8(narrow).astype(int) - 128, narrow.astype(int))
    wide = np.arange(-32512, 32513, dtype=np.int16)
    high, low = (plane.astype(int) - 128 for plane in planes.planes16(wide))
    assert np.array_equal(256 * high + low, wide.astype(int))
    assert high.min() == -127 and high.max() == 127 and low.min() == -128 and low.max() == 127


def test_pieces_join_to_the_whole(monkeypatch: object) -> None:
    rng = np.random.default_rng(0)
    stored = {
        "n": rng.integers(-127, 128, (7, 4)).astype(np.int8),
        "w": rng.integers(-32512, 32513, (7, 6)).astype(np.int16),
    }
    whole = {
        "rows8": np.concatenate(list(planes.rows8(stored.__getitem__, "n"))),
        "rows16": np.concatenate(list(planes.rows16(stored.__getitem__, "w"))),
        "stacked16": np.concatenate(list(planes.stacked16(stored.__getitem__, "w"))),
        "columns": np.concatenate(list(planes.columns8_16(stored.__getitem__, "n", "w"))),
    }
    assert [array.shape for array in whole.values()] == [(7, 4), (7, 12), (14, 6), (7, 16)]
    monkeypatch.setattr(planes, "PIECE", 12)  # type: ignore[attr-defined]
    assert len(list(planes.rows8(stored.__getitem__, "n"))) == 3
    again = {
        "rows8": np.concatenate(list(planes.rows8(stored.__getitem__, "n"))),
        "rows16": np.concatenate(list(planes.rows16(stored.__getitem__, "w"))),
        "stacked16": np.concatenate(list(planes.stacked16(stored.__getitem__, "w"))),
        "columns": np.concatenate(list(planes.columns8_16(stored.__getitem__, "n", "w"))),
    }
    for name, array in whole.items():
        assert np.array_equal(array, again[name])
    values = whole["columns"].astype(int) - 128
    assert np.array_equal(values[:, :4], stored["n"])
    assert np.array_equal(256 * values[:, 4:10] + values[:, 10:], stored["w"].astype(int))


def test_usual_blocks_divide_every_width() -> None:
    fmt = SiteFormat("int8")
    assert [fmt.inputs_a_block(width) for width in (576, 1536, 48)] == [32, 32, 16]
    assert [SiteFormat("int8", block=64).fits((8, width)) for width in (576, 96)] == [True, False]
