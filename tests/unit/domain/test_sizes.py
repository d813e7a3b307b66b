"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidParameter
from service.domain.sizes import MAX_SIZE_BYTES, SIZE_PATTERN, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1), ("700", 700), ("700B", 700), ("3.2GiB", 3435973836), ("700 MB", 700_000_000), ("1KiB", 1024),
        ("1KB", 1000), ("0.5TiB", 1 << 39), ("1.000001MB", 1_000_001), ("0.1", 1), ("999999999999TiB", MAX_SIZE_BYTES),
    ],
)  # fmt: skip
def test_a_size_is_bytes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0", "-1", "+1", "1e3", "1 ", " 1", "1,5GB", ".5GB", "GiB", "1gib", "1G", "1\n", "\u0661", "nan"],
)
def test_what_is_no_size_is_refused_with_how_to_write_one(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"3\.2GiB") as refused:
        parse_size(text, param="target.size")
    assert refused.value.param == "target.size"


@given(st.from_regex(SIZE_PATTERN, fullmatch=True))
def test_whatever_fits_the_pattern_is_a_size(text: str) -> None:
    assert 1 <= parse_size(text) <= MAX_SIZE_BYTES
