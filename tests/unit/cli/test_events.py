"""Server-sent events are read whole, however the network cuts them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from service.cli.events import ServerEvent, events

STREAM = (
    b": alive\n\n"
    b'id: 1\nevent: status\ndata: {"a": 1}\n\n'
    b"event: level\r\ndata: first\r\ndata: second\r\n\r\n"
    b'id: 7\ndata: {"text": "line\xe2\x80\xa8separator \xc2\x85 \xe2\x82\xac"}\n\n'
    b": alive\n\n"
    b"event: cut off\ndata: never"
)
EXPECTED = [
    ServerEvent("status", '{"a": 1}', "1"),
    ServerEvent("level", "first\nsecond", "1"),
    ServerEvent("message", '{"text": "line\u2028separator \x85 €"}', "7"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_the_same_events_come_out_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in itertools.pairwise(edges)]
    assert list(events(chunks)) == EXPECTED


def test_a_stream_of_heartbeats_has_no_events() -> None:
    assert list(events([b": alive\n\n"] * 3)) == []
