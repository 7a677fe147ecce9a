"""bfloat16 is chosen where it is faster, not where the processor merely has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge_svd import bfloat16


@pytest.fixture(autouse=True)
def fresh() -> None:
    bfloat16.bfloat16_is_faster.cache_clear()


def processor(monkeypatch: pytest.MonkeyPatch, flags: str, ratio: float) -> None:
    """One with these flags, whose bfloat16 products take `ratio` times as long as float32 ones."""
    monkeypatch.setattr(Path, "read_text", lambda _: f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr(bfloat16, "_seconds", lambda dtype: ratio if dtype == torch.bfloat16 else 1.0)


@pytest.mark.parametrize(
    ("flags", "ratio", "faster"),
    [
        ("avx512_bf16 amx_bf16", 0.2, True),
        ("avx512_bf16", 0.5, True),
        ("avx512_bf16", 1.8, False),
        ("avx2", 0.2, False),
    ],
)
def test_instructions_alone_are_not_enough(
    flags: str, ratio: float, faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(monkeypatch, flags, ratio)
    assert bfloat16.bfloat16_is_faster() is faster


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, "amx_bf16", 0.2)
    assert bfloat16.bfloat16_is_faster()
    processor(monkeypatch, "amx_bf16", 5.0)
    assert bfloat16.bfloat16_is_faster()


def test_where_the_system_does_not_name_instructions_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert not bfloat16.bfloat16_is_faster()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_take_time(dtype: torch.dtype) -> None:
    assert 0 < bfloat16._seconds(dtype) < 10
