"""Promises of the text stream: UTF-8 is never split, stop strings never leak, the cut of the bytes does not matter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.engine.text import TextStream

SHORT = st.text(alphabet="abc<|é😀", min_size=1, max_size=6)


def feed(data: bytes, sizes: list[int], stops: tuple[str, ...]) -> tuple[list[str], str | None]:
    stream, pieces, position = TextStream(stops), [], 0
    for size in [*sizes, len(data)]:
        pieces.append(stream.push(data[position : position + size]))
        position += size
        if stream.stopped_by is not None:
            break
    pieces.append(stream.finish())
    return pieces, stream.stopped_by


def reference(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """Character by character: the first stop string to be complete ends the text; the longer of two."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@given(st.text(alphabet="abc<|é😀", max_size=40), st.lists(st.integers(1, 5), max_size=40), st.lists(SHORT, max_size=4))
def test_the_text_does_not_depend_on_how_its_bytes_were_cut(text: str, sizes: list[int], stops: list[str]) -> None:
    pieces, stopped_by = feed(text.encode(), sizes, tuple(stops))
    assert ("".join(pieces), stopped_by) == reference(text, tuple(stops))


@given(st.text(max_size=30), st.lists(st.integers(1, 3), max_size=60))
def test_no_piece_holds_half_a_character(text: str, sizes: list[int]) -> None:
    pieces, _ = feed(text.encode(), sizes, ())
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_decided() -> None:
    stream = TextStream(("END",))
    assert stream.push(b"one E") == "one "
    assert stream.push(b"N") == ""
    assert stream.push(b"X") == "ENX"
    assert stream.finish() == ""


def test_a_held_back_beginning_is_given_out_at_the_end() -> None:
    stream = TextStream(("END",))
    assert stream.push(b"one EN") == "one "
    assert stream.finish() == "EN"
    assert stream.stopped_by is None


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    stream = TextStream()
    assert stream.push(b"a\xff") == "a\ufffd"
    assert stream.push("é".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"
