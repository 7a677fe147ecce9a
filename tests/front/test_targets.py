from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_svd.errors import InputError
from edge_svd.files import parse_size
from edge_svd.front.targets import Target, parse_targets


@given(st.integers(1, 2**62))
def test_a_label_says_the_value_exactly(value: int) -> None:
    label = Target("size", value).label
    # Sizes are read as doubles, which hold the label's number where it is below 2⁵³.
    assert parse_size(label) == int(float(value)) or value > 2**53


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40))
def test_targets_are_sorted_and_each_once(values: list[int]) -> None:
    found = parse_targets("size", ",".join(f" {value}B " for value in values))
    assert [target.value for target in found] == sorted(set(values))


@given(st.text(max_size=40))
def test_any_text_gives_targets_or_one_sentence(text: str) -> None:
    try:
        assert parse_targets("ram", text)
    except InputError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
