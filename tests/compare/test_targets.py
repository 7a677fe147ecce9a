"""The fewest parameters that hold a perplexity."""

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
from edge_svd.compare.least import STEPS, least_share
from edge_svd.compare.matrices import Decomposed
from edge_svd.compare.run import compare
from edge_svd.errors import InputError
from edge_svd.factored import factored
from edge_svd.models import OpenedModel


@given(st.integers(1, STEPS))
def test_where_more_is_always_better_it_is_the_least(enough: int) -> None:
    assert least_share(lambda share: share >= enough / STEPS) == enough / STEPS


@given(st.lists(st.booleans(), min_size=STEPS, max_size=STEPS))
def test_it_always_meets_and_is_next_to_one_that_does_not(answers: list[bool]) -> None:
    answers[0] = False
    found = round(STEPS * least_share(lambda share: answers[round(STEPS * share)]))
    assert (found == STEPS or answers[found]) and not answers[found - 1]


def held_out_perplexity(opened: OpenedModel, statistics: Any) -> float:
    ids = statistics.held_out()
    with torch.no_grad():
        q = torch.log_softmax(opened.model(input_ids=ids).logits.double(), -1)[:, :-1]
    return float((-q.gather(2, ids[:, 1:, None])).mean().exp())


@pytest.mark.parametrize("allocation", ["uniform", "second-order"])
def test_the_target_is_met_and_less_would_not_meet_it(
    allocation: str, opened: OpenedModel, statistics: Any, text: Path
) -> None:
    made = Decomposed(opened, statistics, "svd-llm")
    total = sum(site.shape[0] * site.shape[1] for site in inner_sites(opened.sites))
    priced, dense = made.priced(allocation), held_out_perplexity(opened, statistics)

    def at(ratio: float) -> float:
        with factored(opened.model, made.factors(made.choose(allocation, ratio, priced))):
            return held_out_perplexity(opened, statistics) / dense

    target = (1 + at(0.3)) / 2
    assert target > 1
    options = Asked(("svd-llm",), (allocation,), (), (text,), 32, 3, targets=(target,))
    found = compare(opened, statistics, options)
    (row,) = found["rows"]
    assert (row["ratio"], row["size"], row["target"]) == (None, None, target)
    share = -(-row["parameters"] * STEPS // total) / STEPS
    assert made.choose(allocation, share, priced).parameters == row["parameters"]
    assert at(share) <= target < at(share - 1 / STEPS)
    assert compare(opened, statistics, options) == found


def test_targets_of_the_command_line(folder: Path, text: Path, tmp_path: Path) -> None:
    options = ["--calibration", str(text), "--calibration-windows", "8", "--calibration-window", "32"]
    options += ["--text", str(text), "--window", "32", "--windows", "2"]
    line = ["compare", str(folder), "--methods", "svd", "--allocations", "strs", *options]
    made = edge_svd(*line, "--over-dense", "1.02,2", "--ratios", "0.6", "-o", str(tmp_path / "out"))
    assert made.code == 0, made.err
    assert "prose 0.6" in made.out and "prose ≤ 1.02x" in made.out and "prose ≤ 2x" in made.out
    rows = json.loads((tmp_path / "out" / "compare.json").read_text())["rows"]
    assert [(row["ratio"], row["target"]) for row in rows] == [(0.6, None), (None, 1.02), (None, 2.0)]
    assert rows[1]["parameters"] >= rows[2]["parameters"]
    for bad, words in [("1.0", "above 1, not 1"), ("nan", "above 1"), ("inf", "above 1"), ("x", "like 1.2,1.5")]:
        edge_svd(*line, "--over-dense", bad).refused(2, words)


def test_nothing_is_asked_for(opened: OpenedModel, statistics: Any, text: Path) -> None:
    with pytest.raises(InputError, match="no ratio, size or target"):
        compare(opened, statistics, Asked(("svd",), ("uniform",), (), (text,)))
