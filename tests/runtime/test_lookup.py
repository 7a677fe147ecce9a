"""The tokens that a look at the text so far guesses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_svd.runtime.lookup import GUESSED, MOST, guess


def guessed(ids: list[int]) -> list[int]:
    return [int(token) for token in guess(np.array(ids, np.int64))]


def agreeing(ids: list[int], end: int) -> int:
    """How many tokens before `end` are those before the end of all."""
    count = 0
    while count < end and ids[end - 1 - count] == ids[-1 - count]:
        count += 1
    return count


def plainly(ids: list[int]) -> list[int]:
    """Every place tried, one after another."""
    best, place = 1, 0
    for end in range(1, len(ids)):
        count = min(agreeing(ids, end), max(GUESSED))
        if count >= best and count > 1:
            best, place = count, end
    if best == 1:
        return []
    found = list(ids)
    for at in range(GUESSED[best]):
        found.append(found[place + at])
    return found[len(ids) :]


@given(st.lists(st.integers(0, 3), max_size=40))
def test_as_a_plain_search_finds_them(ids: list[int]) -> None:
    assert guessed(ids) == plainly(ids)


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([], []),
        ([1], []),
        ([1, 1], []),
        ([5, 6, 7, 8, 9], []),
        ([7, 1, 8, 1], []),
        ([1, 2, 9, 8, 7, 1, 2], [9, 8]),
        ([0, 1, 2, 9, 8, 7, 0, 1, 2], [9, 8, 7]),
        ([3, 0, 1, 2, 9, 8, 7, 6, 5, 4, 3, 0, 1, 2], [9, 8, 7, 6, 5]),
        ([1, 2, 3, 4, 1, 2, 5, 6, 1, 2], [5, 6]),
        ([0, 1, 2, 3, 4, 1, 2, 5, 6, 0, 1, 2], [3, 4, 1]),
        ([4, 4, 4], [4, 4]),
        ([1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 1]),
    ],
)
def test_examples(ids: list[int], wanted: list[int]) -> None:
    """The latest place, unless an earlier one agrees longer; what repeats goes on."""
    assert guessed(ids) == wanted and len(wanted) <= MOST
