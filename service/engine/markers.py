"""Where a text ends with the beginning of a marker, and so must be held back. Pure."""

from __future__ import annotations


def ends_with_part_of(text: str, markers: tuple[str, ...]) -> int:
    """Characters at the end of `text` that begin some marker and are not all of it: the longest such end."""
    longest = max(map(len, markers), default=0) - 1
    for length in range(min(longest, len(text)), 0, -1):
        tail = text[-length:]
        if any(len(marker) > length and marker.startswith(tail) for marker in markers):
            return length
    return 0
