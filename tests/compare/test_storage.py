"""Factors stored as pivot rows and coefficients: counted rightly, measured as stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import edge_svd
from hypothesis import given
from hypothesis import strategies as st

from edge_svd.calibrate.collect import inner_sites
from edge_svd.compare.asked import Asked
from edge_svd.compare.matrices import Decomposed
from edge_svd.compare.run import compare
from edge_svd.compare.storage import PIVOTED, PLAIN, STORAGES, break_even, parameters, rank_within
from edge_svd.models import OpenedModel

sizes = st.integers(1, 300)


@given(sizes, sizes, st.sampled_from(STORAGES), st.floats(0, 1.2))
def test_ranks_and_parameters_agree(m: int, n: int, storage: str, share: float) -> None:
    shape, most = (m, n), share * m * n
    even, rank = break_even(shape, storage), rank_within(shape, most, storage)
    assert parameters(shape, even, storage) >= m * n
    assert even == 0 or parameters(shape, even - 1, storage) < m * n
    assert rank == 0 or parameters(shape, rank, storage) <= most
    assert rank == min(shape) or parameters(shape, rank + 1, storage) > most


def test_pivoted_numbers_are_what_is_not_known_beforehand() -> None:
    """Of B [m, k] and A [k, n], the k² numbers of the identity need no storing."""
    assert parameters((30, 20), 7, PIVOTED) == 30 * 7 + 7 * 20 - 7 * 7
    assert parameters((30, 20), 7, PLAIN) == 30 * 7 + 7 * 20
    assert break_even((30, 20), PIVOTED) == 20 and break_even((30, 20), PLAIN) == 12


@pytest.mark.parametrize("method", ["svd-llm", "io-svd", "nsvd-i"])
def test_what_is_measured_is_what_is_stored(method: str, opened: OpenedModel, statistics: Any) -> None:
    made = Decomposed(opened, statistics, method)
    priced = made.priced("second-order")
    choice = made.choose("second-order", 0.5, priced, storage=PIVOTED)
    factors = made.factors(choice)
    stored = made.stored(factors, PIVOTED)
    shapes = {site.name: site.shape for site in inner_sites(opened.sites)}
    total = sum(m * n for name, (m, n) in shapes.items() if name not in factors)
    for name, (b, a) in factors.items():
        b_stored, a_stored = stored[name]
        w, k = b.double() @ a.double(), b.shape[1]
        assert torch.allclose(b_stored.double() @ a_stored.double(), w, rtol=0, atol=1e-5 * float(w.abs().max()))
        unit = (b_stored == 0).sum(1) == k - 1
        assert int((unit & (b_stored.sum(1) == 1)).sum()) >= k
        total += b.numel() + a.numel() - k * k
    assert total == choice.parameters <= choice.budget
    assert made.stored(factors, PLAIN) == factors


def test_more_rank_for_the_same_parameters_loses_less(opened: OpenedModel, statistics: Any, text: Path) -> None:
    allocations = ("uniform", "strs", "second-order", "second-order-measured", "first-order", "zero-sum")
    asked = Asked(("svd-llm",), allocations, (0.6,), (text,), 32, 3, storages=STORAGES)
    found = compare(opened, statistics, asked)
    kl = {(row["allocation"], row["factors"]): row["kl"] for row in found["rows"]}
    assert len(kl) == 2 * len(allocations)
    assert all(kl[name, PIVOTED] < kl[name, PLAIN] for name in ("uniform", "second-order"))
    ranks = {(of["allocation"], of["factors"]): of["ranks"] for of in found["choices"]}
    pairs = [
        (ranks["uniform", PLAIN][site.name], ranks["uniform", PIVOTED][site.name]) for site in inner_sites(opened.sites)
    ]
    assert all(plain < pivoted for plain, pivoted in pairs)
    total = found["model"]["parameters"]
    assert all(0.5 * total < row["parameters"] <= 0.6 * total for row in found["rows"])


def test_healed_factors_are_pivoted_behind_it(opened: OpenedModel, statistics: Any, text: Path) -> None:
    asked = Asked(("svd-llm",), ("uniform",), (0.5,), (text,), 32, 3, ("none", "refit"), 8, storages=(PIVOTED,))
    ids = torch.from_numpy(opened_windows(opened, text))
    found = compare(opened, statistics, asked, lambda: ids)
    (plain, healed) = found["choices"]
    assert plain["parameters"] == healed["parameters"] and len(healed["healing"]) == 1


def opened_windows(opened: OpenedModel, text: Path) -> Any:
    from edge_svd.calibrate.sources import parse_source
    from edge_svd.calibrate.text import windows_from

    return windows_from([parse_source(str(text))], opened, window=32, count=8, seed=0).ids


def test_the_command_line_takes_both(folder: Path, text: Path, tmp_path: Path) -> None:
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    options += ["--text", str(text), "--window", "32", "--windows", "2", "--ratios", "0.6"]
    line = ["compare", str(folder), "--methods", "svd", *options]
    made = edge_svd(*line, "--factors", "plain,pivoted", "-o", str(tmp_path / "out"))
    assert made.code == 0, made.err
    assert [row.split()[:3] for row in made.out.splitlines()[2:4]] == [
        ["svd", "uniform", "plain"],
        ["svd", "uniform", "pivoted"],
    ]
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [row["factors"] for row in rows] == ["plain", "pivoted"]
    edge_svd(*line, "--factors", "sparse").refused(2, "plain, pivoted")
    edge_svd(*line, "--factors", ",").refused(2, "no kind of factors")
