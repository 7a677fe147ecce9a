"""The tables on made-up results: the right one of ours beside each rival, ratios, and losses called losses."""

from __future__ import annotations

from typing import Any

import pytest
from rivals.table import (
    METRICS,
    Result,
    Speed,
    Spread,
    bandwidth_table,
    batch_table,
    best_rivals_table,
    best_within,
    losses,
    main_table,
    ratio,
    speed_of,
    speed_table,
)


def spread(*values: float) -> Spread:
    return Spread(values)


def result(
    name: str, mb: float, change: float, decode: float = 100, peak: float = 200, *, threads: int = 2, **more: Any
) -> Result:
    speed = Speed(spread(0.5), spread(0.1), spread(400.0), spread(500.0), spread(decode))
    ours = name.startswith("edge-svd")
    settings: dict[str, Any] = {"peak": spread(peak * 1e6), "speeds": {threads: speed}} | more
    return Result(name, ours, round(mb * 1e6), change, **settings)


def rows(table: str) -> list[list[str]]:
    lines = table.splitlines()
    assert len({line.count("|") for line in lines}) == 1 and set(lines[1]) == {"|", "-"}
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_medians_and_spreads() -> None:
    assert spread(3, 1, 2).median == 2 and spread(3, 1, 2).text() == "2 (1–3)"
    assert spread(1.01, 1.02, 0.99).text() == "1" and spread(2e6, 4e6).text(1e6, 1) == "3.0 (2.0–4.0)"


def test_ours_is_the_best_that_is_not_larger() -> None:
    ours = [result(f"edge-svd {mb}", mb, change) for mb, change in ((50, 0.9), (90, 0.2), (100, 0.3), (140, 0.0))]
    assert best_within(ours, 49_999_999) is None
    for size, mb in ((90_000_000, 90), (139_000_000, 90), (140_000_000, 140)):
        found = best_within(ours, size)
        assert found is not None and found.name == f"edge-svd {mb}"
    assert best_within([result("edge-svd x", 1, 0.1), Result("edge-svd unscored", True, 1)], 10**7) is not None


def test_ratios_are_ours_over_theirs_at_the_best_number_of_threads() -> None:
    one, two = (Speed(spread(0.5), spread(0.1), spread(400.0), spread(500.0), spread(d)) for d in (60.0, 80.0))
    rival = result("rival", 100, 0.1, speeds={1: two, 2: one})
    assert rival.threads == 1 and rival.best is two
    own = result("edge-svd a", 90, 0.0, decode=40, peak=300)
    values = {metric.name: ratio(own, rival, metric) for metric in METRICS}
    assert values == {"decode": 0.5, "prefill": 1.0, "RSS": 1.5, "load": 1.0}
    assert losses(own, rival) == ["decode", "RSS"]
    assert losses(rival, own) == ["perplexity"]
    assert losses(own, Result("nothing measured", False, 1)) == []


@pytest.mark.parametrize(("decode", "lost"), [(98.1, []), (97.9, ["decode"]), (150, [])])
def test_a_loss_is_more_than_what_counts_as_equal(decode: float, lost: list[str]) -> None:
    assert losses(result("edge-svd a", 1, 0.0, decode), result("b", 1, 0.0)) == lost


def test_perplexity_is_compared_as_a_whole() -> None:
    rival = result("b", 1, 0.5)
    assert losses(result("edge-svd a", 1, 0.5014), rival) == []
    assert losses(result("edge-svd a", 1, 0.5016), rival) == ["perplexity"]


def test_main_table() -> None:
    results = [
        result("small rival", 50, 0.3),
        result("edge-svd 88MB", 88, 0.01, decode=90, peak=460),
        result("rival", 100, 0.02),
        result("large rival", 200, 0.0, decode=20, peak=900),
    ]
    head, _, large, middle, small = rows(main_table(results))
    assert [row[0] for row in (large, middle, small)] == ["large rival", "rival", "small rival"]
    assert head[7] == "ours, not larger" and head[-1] == "we lose"
    assert middle[1:7] == ["100.0", "+2.0%", "100", "500", "200", "0.50"] and middle[7] == "edge-svd 88MB"
    assert middle[-5:] == ["**0.90**", "1.00", "**2.30**", "1.00", "**decode, RSS**"]
    assert large[-5:-1] == ["4.50", "1.00", "0.51", "1.00"] and large[-1] == "**perplexity**"
    assert small[7] == "none that small" and small[-1] == "–"


def test_the_best_rival_of_each_figure() -> None:
    results = [
        result("edge-svd 88MB", 88, 0.01, decode=90, peak=460),
        result("edge-svd 145MB", 145, 0.0, decode=80),
        result("fast", 100, 0.3, decode=180, peak=400),
        result("lean", 110, 0.3, decode=60, peak=230),
        result("dense", 500, 0.0, decode=40, peak=100),
    ]
    _, _, big, small = rows(best_rivals_table(results))
    assert small[:2] == ["edge-svd 88MB", "2 rivals"]
    assert small[2] == "fast: **0.50**" and small[4] == "lean: **2.00**"
    assert big[2] == "dense: 2.00" and big[4] == "dense: **2.00**"


def test_what_was_not_measured_is_said() -> None:
    results = [Result("rival", False, 10**8), Result("edge-svd a", True, 10**7, 0.1)]
    _, _, row = rows(main_table(results))
    assert row[2:7] == ["–"] * 5 and row[-5:] == ["–"] * 4 + ["nothing"]
    assert rows(best_rivals_table(results))[2][2:] == ["–"] * 4


def test_speeds_of_rounds() -> None:
    entry = {
        "load_s": 1,
        "first_token_s": 0.2,
        "prefill_tokens_per_s": 300,
        "prefill_long_tokens_per_s": 500,
        "decode_tokens_per_s": 70,
    }
    found = speed_of([{"a": entry}, {"a": entry | {"decode_tokens_per_s": 90}}, {"b": entry}], "a")
    assert found is not None and found.decode.values == (70.0, 90.0) and found.prefill_long.median == 500
    assert speed_of([{"b": entry}], "a") is None
    assert speed_of([], "a") is None


def test_tables_of_speed_batch_and_bandwidth() -> None:
    results = [
        result("rival", 100, 0.0, decode=50, batch=spread(150.0), read=200_000_000, which="file"),
        result("other", 90, 0.0),
    ]
    assert rows(speed_table(results))[2] == ["rival", "2", "0.50", "100", "400", "500", "50"]
    (_, _, only) = rows(batch_table(results, 4, 2))
    assert only == ["rival", "150", "3.00"]
    (_, _, share) = rows(bandwidth_table(results, {1: spread(10e9), 2: spread(20e9, 20e9)}))
    assert share == ["rival", "200.0", "file", "–", "0.50"]
