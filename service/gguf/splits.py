"""GGUF models in several files: which files belong together, and one file made of them.

Runs in child processes, on files that a stranger chose. `split.no` and `split.count` in each header are what counts;
names only say where to look. The first piece has the metadata of the whole, and may hold no tensors of its own.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.domain.errors import InvalidModel
from service.gguf.header import MAGIC, MAX_HEADER_BYTES, Header
from service.gguf.parsing import parse_header
from service.gguf.rewriting import Part, Progress, header_bytes, pair_bytes, write_file

MAX_PIECES = 1000

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_NUMBER_KEY, _COUNT_KEY, _TENSORS_KEY = "split.no", "split.count", "split.tensors.count"
_SHOWN_MISSING = 5


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    header: Header
    number: int  # from 0
    count: int


def pieces_of(path: Path) -> tuple[Path, ...]:
    """All pieces, in order, of the split model that `path` is a piece of; () for a file that is whole.

    They are looked for beside it, under the names that llama-gguf-split gives. Raises InvalidModel for what is no
    GGUF file, and names the pieces that are missing.
    """
    piece = _read(path)
    if piece.count <= 1:
        return ()
    names = _names(path.name, piece)
    missing = [name for name in names if not path.with_name(name).is_file()]
    if missing:
        raise _missing(missing, piece.count)
    return tuple(path.with_name(name) for name in names)


def pieces_among(files: Mapping[str, Path]) -> tuple[Path, ...]:
    """As `pieces_of`, for files given by name that lie anywhere: all pieces, in order; () for one file that is whole.

    Raises InvalidModel also when they are not the pieces of one model.
    """
    pieces = [_read(path) for path in files.values()]
    if len(pieces) == 1 and pieces[0].count <= 1:
        return ()
    return tuple(piece.path for piece in _in_order(pieces))


def merge(pieces: Sequence[Path], target: Path, progress: Progress) -> None:
    """One GGUF file at `target`, which must not exist, of all pieces of a model in any order; fsynced.

    The metadata is that of the first piece less what it says of the split; tensors follow piece by piece, byte by byte
    as they are. Memory is that of the headers. Raises InvalidModel, OSError.
    """
    read = _in_order([_read(path) for path in pieces])
    first = read[0].header
    parts = [
        Part(tensor, piece.path, piece.header.data_offset + offset)
        for piece in read
        for tensor, offset in zip(piece.header.tensors, piece.header.offsets, strict=True)
    ]
    _check_tensors(read)
    with read[0].path.open("rb") as source:
        head = source.read(first.data_offset)
    split_keys = (_NUMBER_KEY, _COUNT_KEY, _TENSORS_KEY)
    try:
        pairs = [raw for key, raw in pair_bytes(head) if key not in split_keys]
    except (struct.error, KeyError, UnicodeDecodeError):
        raise InvalidModel("The first piece was changed while it was read; import it when it is complete.") from None
    header = header_bytes(pairs, [part.tensor for part in parts], first.alignment)
    write_file(target, header, parts, first.alignment, progress)


def _read(path: Path) -> _Piece:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such path"
        raise InvalidModel(f"A file cannot be opened: {reason}. Check that it is there and readable.") from None
    try:
        size = os.fstat(descriptor).st_size
        if os.pread(descriptor, len(MAGIC), 0) != MAGIC:
            raise InvalidModel("The file does not start with the letters GGUF; give a .gguf file.")
        with mmap.mmap(descriptor, min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ) as data:
            header = parse_header(data, size, needs_tensors=False)
    except (OSError, ValueError) as error:
        raise InvalidModel(f"A file cannot be read ({type(error).__name__}). Check the disk it lies on.") from None
    finally:
        os.close(descriptor)
    count = header.whole(_COUNT_KEY) or 0
    if count > MAX_PIECES:
        raise InvalidModel(f"{_COUNT_KEY} is {count}; {MAX_PIECES} pieces are allowed. Join them into fewer first.")
    if count <= 1 and not header.tensors:
        raise InvalidModel("The file holds no tensors, only metadata; give the file that holds the weights.")
    number = header.whole(_NUMBER_KEY) or 0
    if count > 1 and not 0 <= number < count:
        raise InvalidModel(f"{_NUMBER_KEY} is {number} of {count} pieces; the file is corrupt, download it again.")
    return _Piece(path, header, number, count)


def _names(name: str, piece: _Piece) -> list[str]:
    found = _NAME.fullmatch(name)
    if found is None or int(found["number"]) != piece.number + 1 or int(found["count"]) != piece.count:
        raise InvalidModel(
            f"The file is piece {piece.number + 1} of {piece.count} of a split model, and its name does not say where "
            f"the others are; name the pieces NAME-{1:05}-of-{piece.count:05}.gguf and so on, in one folder."
        )
    return [f"{found['stem']}-{number:05}-of-{piece.count:05}.gguf" for number in range(1, piece.count + 1)]


def _in_order(pieces: list[_Piece]) -> list[_Piece]:
    """The pieces by number, when each of them is there once."""
    count = pieces[0].count if pieces else 0
    if count <= 1 or any(piece.count != count for piece in pieces):
        raise InvalidModel("The files are not the pieces of one split model; give all pieces of one, and nothing else.")
    by_number = {piece.number: piece for piece in pieces}
    if len(by_number) != len(pieces):
        raise InvalidModel("A piece of the split model is given twice; give each of them once.")
    missing = [f"piece {number + 1}" for number in range(count) if number not in by_number]
    if missing:
        raise _missing(missing, count)
    return [by_number[number] for number in range(count)]


def _check_tensors(pieces: list[_Piece]) -> None:
    names: set[str] = set()
    for piece in pieces:
        for tensor in piece.header.tensors:
            if tensor.name in names:
                raise InvalidModel(
                    f"The tensor {tensor.name!a} is in more than one piece; they are not of one model. Download them "
                    "again."
                )
            names.add(tensor.name)
    stated = pieces[0].header.whole(_TENSORS_KEY)
    if stated is not None and stated != len(names):
        raise InvalidModel(
            f"The pieces hold {len(names)} tensors and the first one announces {stated}; they are not of one model. "
            "Download them again."
        )


def _missing(names: list[str], count: int) -> InvalidModel:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:_SHOWN_MISSING])
    more = f" and {len(names) - _SHOWN_MISSING} more" if len(names) > _SHOWN_MISSING else ""
    return InvalidModel(f"Of the {count} pieces of the split model, missing: {shown}{more}; put all in one folder.")
