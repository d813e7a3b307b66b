"""SentencePiece's compiled map of letters: what llama.cpp would read beyond the end of is refused."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.charsmap import MAX_CHARSMAP_BYTES, check_charsmap
from service.gguf.files import read_header
from tests.unigram_tokenizers import LETTERS, charsmap

SOUND = charsmap(LETTERS)
KEY = "tokenizer.ggml.precompiled_charsmap"


def normalized(data: bytes, text: bytes) -> bytes:
    """As llama.cpp does it (llm_tokenizer_ugm_session::normalize_prefix); IndexError where that throws."""
    (size,) = struct.unpack_from("<I", data)
    units, replacements = struct.unpack_from(f"<{size // 4}I", data, 4), data[4 + size :]

    def offset(unit: int) -> int:
        return (unit >> 10) << ((unit & 0x200) >> 6) & 0xFFFF_FFFF

    out, start = b"", 0
    while start < len(text):
        place = offset(units[0]) if units else 0
        longest = replaced = 0
        for end in range(start, len(text)) if units else ():
            if not text[end]:
                break
            place ^= text[end]
            unit = units[place]
            if unit & 0x8000_00FF != text[end]:
                break
            place ^= offset(unit)
            if unit >> 8 & 1:
                longest, replaced = end - start + 1, units[place] & 0x7FFF_FFFF
        if longest:
            if b"\0" not in replacements[replaced:]:
                raise IndexError
            out += replacements[replaced:].split(b"\0")[0]
        else:
            out += text[start : start + 1]
        start += longest or 1
    return out


def test_a_sound_map_is_accepted_and_maps() -> None:
    check_charsmap(SOUND)
    assert normalized(SOUND, "ﬁne…\uff21\tb".encode()) == b"fine...A b"


def test_maps_that_lead_nowhere_or_never_end_are_refused() -> None:
    (size,) = struct.unpack_from("<I", SOUND)
    for damaged in (
        b"",
        b"abc",
        struct.pack("<I", len(SOUND)) + SOUND[4:],  # longer than there is
        SOUND[: 4 + size],  # no replacements
        SOUND + b"x",  # the last has no end
        struct.pack("<I", size - 1024) + SOUND[4 : 4 + size - 1024] + b"\0",  # a block is missing
        struct.pack("<I", size) + SOUND[4 : 4 + size] + b"\0",  # so are most replacements
        struct.pack("<II", 4, 0) + b"\0",  # no block at all
        bytes(MAX_CHARSMAP_BYTES + 1),
    ):
        with pytest.raises(InvalidModel, match="precompiled_charsmap"):
            check_charsmap(damaged)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_accepted_is_never_read_beyond_its_end(data: st.DataObject) -> None:
    damaged = bytearray(charsmap(dict(list(LETTERS.items())[-4:])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) // 4 - 1)) * 4
        damaged[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1) | st.integers(0, 2**13)))
    with contextlib.suppress(InvalidModel):
        check_charsmap(bytes(damaged))
        normalized(bytes(damaged), data.draw(st.binary(max_size=40)) + "".join(LETTERS).encode())


def test_a_file_with_such_a_map_is_refused_before_llama_cpp_reads_a_text_with_it(tiny: Any, write: Any) -> None:
    model = tiny.with_pair("tokenizer.ggml.model", "str", "t5").with_pair("tokenizer.ggml.eos_token_id", "u32", 2)
    assert read_header(write(model.with_pair(KEY, "[u8", list(SOUND)))).charsmap == SOUND
    with pytest.raises(InvalidModel, match="precompiled_charsmap"):
        read_header(write(model.with_pair(KEY, "[u8", list(SOUND[:-9] + b"x"))))
    with pytest.raises(InvalidModel, match="precompiled_charsmap"):
        read_header(write(model.with_pair(KEY, "[u32", [0, 0])))
