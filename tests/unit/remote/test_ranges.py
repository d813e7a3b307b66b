"""Which bytes are there: kept as a set of bytes would be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.remote.ranges import Ranges

SIZE = 30
spans = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted).map(tuple), max_size=8)


@given(spans)
def test_ranges_are_the_set_of_their_bytes(added):
    ranges, there = Ranges(added), set()
    for start, stop in added:
        there |= set(range(start, stop))
    assert ranges.total == len(there)
    assert {byte for start, stop in ranges.listed() for byte in range(start, stop)} == there
    assert {byte for start, stop in ranges.missing(SIZE) for byte in range(start, stop)} == set(range(SIZE)) - there
    front = next((byte for byte in range(SIZE + 1) if byte not in there), SIZE)
    assert ranges.front == front
    assert Ranges(ranges.listed()).listed() == ranges.listed()
    assert all(a < b < c for (a, b), (c, _) in zip(ranges.listed(), ranges.listed()[1:], strict=False))
