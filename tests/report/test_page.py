"""The page as a document: well formed, complete, nothing from elsewhere, text from a model never as markup."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from front_made import made_front
from page_checker import Checker

from edge_svd.report.charts import SMALL, WIDE, Chart, Mark, Series, draw
from edge_svd.report.front_page import front_page
from edge_svd.report.front_table import front_table
from edge_svd.report.heat_map import letters


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("layers", [1, 4, 80])
def test_well_formed_and_self_contained(measured: bool, layers: int) -> None:
    page = front_page(made_front(layers, measured))
    checker = Checker()
    checker.feed(page)
    assert checker.sound
    assert "http://" not in page and "https://" not in page and "url(" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(svg)  # well formed
        assert 'role="img"' not in svg or ("<title" in svg and "<desc" in svg)


def test_all_numbers_stand_in_the_page() -> None:
    page = front_page(made_front())
    for text in (
        "0.8000",
        "0.8800",
        "54.00",
        "+80.0%",
        "30.00",
        "not reachable",
        "A bundle of 10 MB cannot be reached.",
    ):
        assert text in page
    assert "95.5" in page and "180.00 MB" in page and "low-rank 1.9000" in page and "int8 0.0300" in page
    for name in ("model.layers.3.down_proj", "row-pivoted", "Some Processor", "onnxruntime&nbsp;1.32.0", "2026-11-22"):
        assert name in page
    assert page.count('class="plan"') == 2


def test_every_matrix_has_its_cell_in_both_layouts() -> None:
    page = front_page(made_front(40))
    assert page.count("<title>model.layers.39.q_proj") == 2 * 2  # two plans, two layouts
    assert page.count("<title>model.embed_tokens") == 2 * 2


def test_a_name_is_text_and_never_markup() -> None:
    page = front_page(made_front(name="x/<script>alert(1)</script>&"))
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert page.count("<script>") == 1


def test_without_measurements_nothing_is_shown_as_measured() -> None:
    page = front_page(made_front(measured=False))
    assert "h-measured" not in page and "KL measured" not in page and "nothing was measured" in page


def test_terminal_table() -> None:
    lines = front_table(made_front()).splitlines()
    assert lines[0].split() == (
        "target size KL predicted KL measured perplexity over dense decode tok/s peak RSS best single technique".split()
    )
    assert lines[1].startswith("10MB") and "not reachable" in lines[1]
    assert "0.8000" in lines[2] and "0.8800" in lines[2] and "+80.0%" in lines[2] and "low-rank: KL 1.9000" in lines[2]
    assert lines[4] == "10MB: A bundle of 10 MB cannot be reached."
    planned = front_table(made_front(measured=False))
    assert "perplexity" not in planned and "~95.5" in planned and "~180.00 MB" in planned


def test_one_point_alone_can_be_drawn() -> None:
    chart = Chart("t", "d", "x", "y", (Series("s", "t0", (Mark(1.0, 1.0, "tip", "label"),)),), log_x=True, log_y=True)
    for frame in (WIDE, SMALL):
        assert "<circle" in draw(chart, frame, "one") and ">label</text>" in draw(chart, frame, "one")


def test_labels_that_would_hide_each_other_are_left_out() -> None:
    marks = tuple(Mark(1.0 + i / 1000, 1.0, "tip", f"label {i}") for i in range(12))
    drawn = draw(
        Chart("t", "d", "x", "y", (Series("s", "t0", (*marks, Mark(9.0, 9.0, "")), line=False),)), SMALL, "many"
    )
    assert 1 <= drawn.count('class="label"') <= 5


def test_letters_are_unique() -> None:
    assert letters(("int8", "int4", "low-rank", "pivoted", "plain")) == {
        "int8": "I",
        "int4": "N",
        "low-rank": "L",
        "pivoted": "P",
        "plain": "A",
    }
