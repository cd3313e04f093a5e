"""Two lists of class names: what a message says of their difference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pri3d.tasks import differing


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("abc", "abc", ""),
        ("", "", ""),
        ("abc", "ab", "the first alone has c"),
        ("b", "abc", "the second alone has a, c"),
        ("ax", "ay", "the first alone has x; the second alone has y"),
        ("acb", "abc", "class 1 is c in the first and b in the second"),
        ("a", "abcdefgh", "the second alone has b, c, d, e, f and 2 more"),
        ("abcdef", "a", "the first alone has b, c, d, e, f"),
        ("aa", "a", "the first alone has a"),
    ],
)
def test_what_is_said(first: str, second: str, said: str) -> None:
    assert differing(list(first), list(second)) == said


@given(st.lists(st.sampled_from("abcd"), max_size=5), st.lists(st.sampled_from("abcd"), max_size=5))
def test_nothing_is_said_of_equal_lists_alone(first: list[str], second: list[str]) -> None:
    assert (differing(first, second) == "") == (first == second)
