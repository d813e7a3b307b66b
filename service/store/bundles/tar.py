"""Headers of tar archives: POSIX ustar, with GNU's large numbers where a size has no room in octal. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from service.domain.errors import InvalidModel

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""What an archive ends with."""

_OCTAL_LIMIT = 8**11
_CHECKSUM = slice(148, 156)
_POSIX, _GNU = b"ustar\x0000", b"ustar  \x00"

FILE = "file"
FOLDER = "folder"
ATTRIBUTES = "attributes"  # pax: of the next member
GLOBAL_ATTRIBUTES = "global attributes"  # pax: of all that follow
_KINDS = {b"0": FILE, b"\0": FILE, b"5": FOLDER, b"x": ATTRIBUTES, b"g": GLOBAL_ATTRIBUTES}


@dataclass(frozen=True, slots=True)
class Header:
    """A member: its name, the bytes that follow, and what it is."""

    name: str
    size_bytes: int
    kind: str


def write_header(name: str, size_bytes: int) -> bytes:
    """The header of a file of everybody's, made in 1970: equal for equal names and sizes. `name` is short ASCII."""
    encoded = name.encode("ascii")
    assert 0 < len(encoded) < 100, "names of ours are short"
    is_large = size_bytes >= _OCTAL_LIMIT
    size = b"\x80" + size_bytes.to_bytes(11, "big") if is_large else b"%011o\0" % size_bytes
    before = encoded.ljust(100, b"\0") + b"0000444\0" + b"0000000\0" * 2 + size + b"%011o\0" % 0
    after = b"0".ljust(101, b"\0") + (_GNU if is_large else _POSIX) + bytes(64) + b"0000000\0" * 2 + bytes(167)
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after


def padding(size_bytes: int) -> int:
    """Bytes from the end of a member to the next block."""
    return -size_bytes % BLOCK_BYTES


def read_header(block: bytes) -> Header | None:
    """A member's header; None for the block of zeros that ends an archive.

    Raises InvalidModel for what is none, and for links, devices, sparse files and names in records of their own.
    """
    if len(block) != BLOCK_BYTES:
        raise InvalidModel("The archive ends in the middle of a member; get it again.")
    if not any(block):
        return None
    if block[257:265] not in (_POSIX, _GNU):
        raise InvalidModel("The file is no tar archive of the POSIX or GNU kind; make it anew with tar.")
    if _number(block[_CHECKSUM]) != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
        raise InvalidModel("A header in the archive is damaged; get it again.")
    kind = _KINDS.get(block[156:157])
    if kind is None:
        raise InvalidModel("The archive holds links, devices or sparse files, and a bundle has none; make it anew.")
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:265] == _POSIX else ""
    return Header(f"{prefix}/{name}" if prefix else name, _number(block[124:136]), kind)


def read_attributes(record: bytes) -> dict[str, str]:
    """The pax records `LENGTH KEY=VALUE\\n` of a member. Raises InvalidModel."""
    found: dict[str, str] = {}
    while record:
        digits, space, _ = record.partition(b" ")
        length = int(digits) if space and digits.isdigit() and len(digits) < 8 else 0
        entry = record[len(digits) + 1 : length]
        key, equals, value = entry.partition(b"=")
        if not equals or not entry.endswith(b"\n") or length > len(record):
            raise InvalidModel("The attributes of a member of the archive are damaged; get it again.")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "replace")
        record = record[length:]
    return found


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and digits.strip(b"01234567"):
        raise InvalidModel("A number in a header of the archive is damaged; get it again.")
    return int(digits or b"0", 8)
