"""Sizes as people write them: `3.2GiB`, `700 MB`, a plain number of bytes. Pure."""

from __future__ import annotations

import re
from fractions import Fraction

from service.domain.errors import InvalidParameter

# Nothing that is zero: a budget of no bytes is none.
SIZE_PATTERN = r"^(0\.[0-9]{0,5}[1-9]|[1-9][0-9]{0,11}(\.[0-9]{1,6})?)( ?([KMGT]i?B|B))?$"
MAX_SIZE_BYTES = 1 << 50

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{binary}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for binary, base in (("i", 1024), ("", 1000))
}
_SIZE = re.compile(SIZE_PATTERN)


def parse_size(text: str, *, param: str | None = None) -> int:
    """Bytes, rounded down, at least 1 and at most `MAX_SIZE_BYTES`. Binary units end in `iB`, decimal ones in `B`.

    Raises InvalidParameter.
    """
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidParameter(f"{text[:40]!r} is no size; write it like 3.2GiB, 700 MB or 3400000000.", param=param)
    size_bytes = int(Fraction(found[1]) * _UNITS[found[4] or ""])
    return max(1, min(size_bytes, MAX_SIZE_BYTES))
