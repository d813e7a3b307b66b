"""Ranges of bytes as HTTP writes them (RFC 9110, section 14): those that are asked for, and those that come. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from service.domain.errors import InvalidParameter, RangeNotSatisfiable

# No file has more bytes than 18 digits can say.
_ASKED = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
_SENT = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What a piece says of itself: bytes `start` up to `stop` of `size_bytes`; `start` None: no bytes, a question."""

    size_bytes: int
    start: int | None = None
    stop: int = 0


def parse_range(header: str | None, size_bytes: int) -> tuple[int, int] | None:
    """The bytes [start, stop) that a Range header asks for; None: the whole, as for a header that asks for several.

    Raises RangeNotSatisfiable for one that begins past the end. What is no range of bytes is none (section 14.2: a
    server may ignore the field), and a last byte past the end is the end.
    """
    match = None if header is None else _ASKED.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), size_bytes if not last else min(int(last) + 1, size_bytes)
        if last and int(last) < start:
            return None
    if start >= stop:
        raise RangeNotSatisfiable(f"The file has {size_bytes} bytes; ask for some of those.", param="Range")
    return start, stop


def parse_content_range(header: str | None) -> ContentRange:
    """The Content-Range header of a piece: `bytes a-b/total`, b included, or `bytes */total` for a question.

    Raises InvalidParameter.
    """
    match = None if header is None else _SENT.fullmatch(header.strip())
    if match is None:
        raise InvalidParameter(
            "A piece says where it belongs; send Content-Range: bytes FIRST-LAST/TOTAL, or bytes */TOTAL and no body.",
            param="Content-Range",
        )
    first, last, total = match.groups()
    if first is None:
        return ContentRange(int(total))
    if not int(first) <= int(last) < int(total):
        raise InvalidParameter(
            "The range of the piece is none: FIRST may not be over LAST, and LAST is below TOTAL.",
            param="Content-Range",
        )
    return ContentRange(int(total), int(first), int(last) + 1)


def names_tag(header: str | None, tag: str) -> bool:
    """Whether an If-None-Match header names this entity tag, given with its quotes; weak tags compare as strong."""
    if header is None:
        return False
    return header.strip() == "*" or any(_strong(one) == tag for one in _tags(header))


def may_resume(if_range: str | None, tag: str) -> bool:
    """Whether a Range holds under this If-Range header: none, or this very entity tag. A date never is one."""
    return if_range is None or if_range.strip() == tag


def _tags(header: str) -> Iterable[str]:
    return (part.strip() for part in header.split(","))


def _strong(tag: str) -> str:
    return tag.removeprefix("W/")
