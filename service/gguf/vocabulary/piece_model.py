"""A SentencePiece model: the protobuf ModelProto, as much as is needed of it.

Runs in job children. Read by hand: no parser runs on a stranger's file that was not written for one. Knows nothing of
what is made of the pieces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.header import MAX_TOKENS
from service.gguf.vocabulary.tokens import Kind

MAX_MODEL_BYTES = 64 * 1024 * 1024
_UNIGRAM = 1  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a SentencePiece model; its id is its place."""

    text: bytes
    score: float
    kind: Kind


@dataclass(frozen=True, slots=True)
class PieceModel:
    """Pieces, and how texts are prepared for them; what the file leaves out is as in sentencepiece_model.proto.

    `charsmap` is a compiled map of letters, empty for none. `spaces_removed`: those at both ends, and all but one of
    several.
    """

    pieces: tuple[Piece, ...]
    unigram: bool
    charsmap: bytes
    begins_with_space: bool
    spaces_removed: bool


def read_model(content: bytes) -> PieceModel:
    """Raises InvalidModel."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _messages(content):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            pieces.append(_piece(value))
            if len(pieces) > MAX_TOKENS:
                raise InvalidModel(f"The tokenizer has more than {MAX_TOKENS} pieces.")
        elif number == 2:
            trainer |= dict(_messages(value))
        elif number == 3:
            normalizer |= dict(_messages(value))
    charsmap = normalizer.get(2, b"")
    if not pieces or not isinstance(charsmap, bytes | memoryview):
        raise _damaged()
    return PieceModel(
        tuple(pieces),
        unigram=trainer.get(3, _UNIGRAM) == _UNIGRAM,
        charsmap=bytes(charsmap),
        begins_with_space=normalizer.get(3, 1) != 0,
        spaces_removed=normalizer.get(4, 1) != 0,
    )


def _piece(message: memoryview) -> Piece:
    text, score, kind = b"", 0.0, 1
    for number, value in _messages(message):
        match number, value:
            case 1, memoryview():
                text = bytes(value)
            case 2, float():
                score = value
            case 3, int():
                kind = value
    try:
        text.decode()
        named = Kind(kind)
    except ValueError:
        raise _damaged() from None
    if not math.isfinite(score):
        raise _damaged()
    return Piece(text, score, named)


def _messages(data: bytes | memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    """Fields of a message: varints as int, 32 bits as float, the rest as bytes. Groups, long gone, are refused."""
    view = memoryview(data)
    place = 0
    while place < len(view):
        key, place = _varint(view, place)
        number, wire = key >> 3, key & 7
        value: Any
        if wire == 0:
            value, place = _varint(view, place)
        elif wire == 2:
            length, place = _varint(view, place)
            value, place = view[place : place + length], place + length
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
            value, place = view[place : place + length], place + length
            if wire == 5 and len(value) == 4:
                value = struct.unpack("<f", value)[0]
        else:
            raise _damaged()
        if place > len(view) or not number:
            raise _damaged()
        yield number, value


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for step in range(10):
        if place + step >= len(view):
            break
        byte = view[place + step]
        value |= (byte & 0x7F) << (7 * step)
        if byte < 0x80:
            return value, place + step + 1
    raise _damaged()


def _damaged() -> InvalidModel:
    return InvalidModel("The tokenizer's SentencePiece model is damaged or is none; download it again.")
