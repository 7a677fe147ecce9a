"""The benchmark of a whole compression, on a model that takes a second."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from compression_stages import METHODS, stages  # noqa: E402


def test_every_method_and_stage_has_its_time(cache: Path, tmp_path: Path) -> None:
    rows = stages(tmp_path, 2, METHODS, windows=8, window=64, hidden=64, inner=160, heads=4)
    assert [(row["method"], row["layers"]) for row in rows] == [(method, 2) for method in METHODS]
    for row in rows:
        spent = [row[stage] for stage in ("open", "calibrate", "price", "plan", "compress")]
        assert all(seconds > 0 for seconds in spent) and row["total"] == pytest.approx(sum(spent), abs=0.02)
