"""`bench --profile`: a profile of this machine that the planner can read; kernels, products of a graph."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edge_svd.devices import MEASURED, load_profile
from edge_svd.runtime import profile
from edge_svd.runtime.errors import InputError
from edge_svd.runtime.kernel_worker import undisturbed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


def test_a_measured_profile_is_read_by_the_planner(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "KERNELS", ((8, 16), (8, 32), (4, 32)))
    monkeypatch.setattr(profile, "CHAIN_BYTES", 4_000_000)
    monkeypatch.setattr(profile, "SECONDS", 0.01)
    monkeypatch.setattr(profile, "BANDWIDTH_BYTES", 8_000_000)
    monkeypatch.setattr(profile, "SHORTEST_CONTEXT", 48)
    out = tmp_path / "here.toml"
    profile.write_profile(pristine, out, threads=1)
    found = load_profile(str(out))
    assert found.basis == MEASURED and found.speed is not None and found.speed.threads == 1
    assert {(kernel.bits, kernel.block) for kernel in found.speed.kernels} == {(8, 16), (8, 32), (4, 32)}
    assert 20e6 < found.memory.process_bytes < 200e6
    # Three fp32 values a block, whatever the machine: what MatMulNBits packs on x86-64.
    assert 4 <= found.memory.block_bytes <= 16
    profile.write_profile(pristine, out, threads=1)  # a profile is replaced, nothing else is


def test_what_is_no_profile_is_not_replaced(pristine: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text("diary = 1\n")
    for out in (mine, tmp_path / "profile.txt", tmp_path):
        with pytest.raises(InputError):
            profile.write_profile(pristine, out)
    assert mine.read_text() == "diary = 1\n"


def test_other_programs_only_ever_add() -> None:
    assert undisturbed([5.0, 1.0, 9.0, 2.0, 7.0]) == 2.0


def test_what_kernels_hold_is_found_though_two_bits_are_packed_by_fours() -> None:
    def held(bits: int, block: int, rows: int, columns: int, pairs: int) -> float:
        total = 2e6
        for n, k in ((rows, columns), (columns, rows)):
            blocks = -(-k // block)
            if bits == 2:
                blocks = -(-blocks // 4) * 4
            total += pairs * (n * blocks * (block * bits / 8 + 12) + 15_000)
        return total

    chains = [
        (bits, block, shape, {"products": 2 * pairs, "anonymous_bytes": held(bits, block, *shape, pairs)})
        for bits, block in ((8, 16), (8, 128), (4, 32), (2, 64), (2, 128))
        for shape, pairs in ((profile.SMALL, 300), (profile.LARGE, 90))
    ]
    assert profile._kernel_bytes(chains) == pytest.approx((12, 15_000), rel=1e-6)
