"""Reading ahead of the work, and working side by side."""

from __future__ import annotations

import threading

import pytest
import torch

from edge_svd.parallel import ahead, side_by_side


def test_one_item_is_loaded_while_its_predecessor_is_worked_on() -> None:
    loaded = [threading.Event() for _ in range(4)]

    def load(item: int) -> int:
        loaded[item].set()
        return 10 * item

    found = []
    for at, value in enumerate(ahead(load, range(4))):
        if at < 3:
            assert loaded[at + 1].wait(20)  # while this one is worked on
        assert at + 2 > 3 or not loaded[at + 2].is_set()  # and no more than one
        found.append(value)
    assert found == [0, 10, 20, 30]


def test_what_fails_fails_where_it_is_wanted() -> None:
    def load(item: int) -> int:
        if item == 1:
            raise ValueError("unreadable")
        return item

    found = ahead(load, [0, 1, 2])
    assert next(found) == 0
    with pytest.raises(ValueError, match="unreadable"):
        next(found)
    assert list(ahead(load, [])) == []


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    assert list(side_by_side(lambda item: item * item, range(9))) == [item * item for item in range(9)]
    assert torch.get_num_threads() == before
