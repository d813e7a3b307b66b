"""Ranges of bytes, as they are asked for and as they come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.ranges import ContentRange, may_resume, names_tag, parse_content_range, parse_range
from service.domain.errors import InvalidParameter, RangeNotSatisfiable


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=10-", (10, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=90-1000", (90, 100)),
        ("Bytes= 5-6 ", (5, 7)),
        ("bytes=0-1,5-6", None),
        ("bytes=5-4", None),
        ("bytes=-", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=٣-٤", None),
    ],
)
def test_one_range_is_a_range_and_anything_else_the_whole(header: str | None, expected: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 9)])
def test_a_range_past_the_end_cannot_be_satisfied(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, size)


@given(st.integers(0, 10**17), st.data())
def test_every_range_within_a_file_is_that_range(first: int, data: st.DataObject) -> None:
    last = data.draw(st.integers(first, 10**17))
    size = data.draw(st.integers(first + 1, 10**17 + 1))
    assert parse_range(f"bytes={first}-{last}", size) == (first, min(last + 1, size))


@given(st.text(), st.integers(0, 10**18))
def test_no_header_brings_more_than_the_file(header: str, size: int) -> None:
    for text in (header, f"bytes={header}"):
        try:
            found = parse_range(text, size)
        except RangeNotSatisfiable:
            continue
        if found is not None:
            assert 0 <= found[0] < found[1] <= size


@given(st.integers(0, 10**17), st.integers(0, 10**17), st.integers(0, 10**17))
def test_a_content_range_is_read_back_or_refused(first: int, last: int, total: int) -> None:
    header = f"bytes {first}-{last}/{total}"
    if first <= last < total:
        assert parse_content_range(header) == ContentRange(total, first, last + 1)
    else:
        with pytest.raises(InvalidParameter):
            parse_content_range(header)


@given(st.text() | st.from_regex(r"bytes [0-9*-]{0,9}/[0-9*]{0,5}", fullmatch=True))
def test_a_content_range_of_any_text_is_a_range_or_a_refusal(header: str) -> None:
    try:
        found = parse_content_range(header)
    except InvalidParameter:
        return
    assert found.start is None or 0 <= found.start < found.stop <= found.size_bytes


def test_a_question_has_no_bytes() -> None:
    assert parse_content_range("bytes */7") == ContentRange(7)


def test_entity_tags_are_compared_whole() -> None:
    assert names_tag('"a", W/"b"', '"b"')
    assert names_tag("*", '"b"')
    assert not names_tag('"ab"', '"b"')
    assert not names_tag(None, '"b"')
    assert may_resume(None, '"b"')
    assert may_resume('"b"', '"b"')
    assert not may_resume('W/"b"', '"b"')
    assert not may_resume("Wed, 21 Oct 2026 07:28:00 GMT", '"b"')
