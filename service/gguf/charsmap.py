"""SentencePiece's precompiled map of letters, which a text is normalized by: bytes that llama.cpp walks unguarded.

Runs in child processes, on bytes that a stranger chose. The layout is that of sentencepiece's normalizer.cc: a length,
a double array (Darts-clone) of that many bytes, then the replacements, each ended by a zero byte.
"""

from __future__ import annotations

import struct
from array import array
from collections import defaultdict

from service.domain.errors import InvalidModel

MAX_CHARSMAP_BYTES = 1024 * 1024
"""The one for all of NFKC has a quarter of it."""

_LABEL = 0x8000_00FF  # of a unit: the byte that leads to it; with the upper bit set it is a value
_LEAF = 0x100
_FAR = 0x200  # the offset counts blocks of 256


def check_charsmap(data: bytes) -> None:
    """Follow every path of the double array: what a text could lead to must lie within it.

    llama.cpp throws where it does not, in the middle of a request, and nothing catches that. Raises InvalidModel.
    """
    if len(data) > MAX_CHARSMAP_BYTES:
        raise InvalidModel(f"The tokenizer's precompiled_charsmap has more than {MAX_CHARSMAP_BYTES} bytes.")
    if len(data) < 4:
        raise _damaged()
    (size,) = struct.unpack_from("<I", data)
    replacements = data[4 + size :]
    if not replacements or replacements[-1]:
        raise _damaged()
    units = array("I")
    units.frombytes(data[4 : 4 + size // 4 * 4])
    if units:
        _follow(units, len(replacements))


def _follow(units: array[int], replaced_bytes: int) -> None:
    # A unit is a child of the base that its place and its label give: place = base ^ label.
    children: dict[int, list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        label = unit & _LABEL
        if 0 < label < 0x100:
            children[place ^ label].append(place)
    waiting = [_offset(units[0])]
    seen = set(waiting)
    while waiting:
        base = waiting.pop()
        if base | 0xFF >= len(units):  # any byte may be looked for
            raise _damaged()
        for place in children.get(base, ()):
            unit = units[place]
            following = place ^ _offset(unit)
            if unit & _LEAF and (following >= len(units) or units[following] & 0x7FFF_FFFF >= replaced_bytes):
                raise _damaged()
            if following not in seen:
                seen.add(following)
                waiting.append(following)


def _offset(unit: int) -> int:
    return unit >> 10 << 8 & 0xFFFF_FFFF if unit & _FAR else unit >> 10


def _damaged() -> InvalidModel:
    return InvalidModel("The tokenizer's precompiled_charsmap is damaged; download the model's files again.")
