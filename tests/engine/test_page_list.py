"""PageList: always what a list would be, as an array too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightthinker.kvcache.page_list import PageList

CHANGES = st.lists(
    st.one_of(
        st.lists(st.integers(0, 2**31 - 1), max_size=12),
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.just("look"),
    ),
    max_size=30,
)


@given(CHANGES)
def test_the_array_is_the_list_whatever_happened(changes):
    pages, expected = PageList(), []
    for change in changes:
        if isinstance(change, list):
            pages += change
            expected += change
        elif change == "look":
            assert pages.numbers().tolist() == expected
        else:
            length = int(change[1] * len(expected))
            assert pages.cut(length) == expected[length:]
            del expected[length:]
        assert list(pages) == expected
    assert pages.numbers().tolist() == expected


def test_the_middle_cannot_change():
    pages = PageList([3, 1, 2])
    with pytest.raises(TypeError, match="end only"):
        pages[0] = 5
    with pytest.raises(TypeError, match="end only"):
        del pages[1:]
