"""Which bytes of a file are there: ranges [start, stop), kept apart and in order. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class Ranges:
    """A set of bytes."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._ranges: list[tuple[int, int]] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Bytes from `start` up to `stop` are there."""
        assert 0 <= start <= stop
        if start == stop:
            return
        apart = [(a, b) for a, b in self._ranges if b < start or a > stop]
        touched = [(a, b) for a, b in self._ranges if not (b < start or a > stop)]
        start, stop = min([start, *(a for a, _ in touched)]), max([stop, *(b for _, b in touched)])
        self._ranges = sorted([*apart, (start, stop)])

    @property
    def front(self) -> int:
        """How many bytes are there from the first on without a gap."""
        return self._ranges[0][1] if self._ranges and self._ranges[0][0] == 0 else 0

    @property
    def total(self) -> int:
        """How many bytes are there."""
        return sum(stop - start for start, stop in self._ranges)

    def missing(self, size: int) -> list[tuple[int, int]]:
        """What is not there of `size` bytes, in order."""
        gaps, at = [], 0
        for start, stop in self._ranges:
            if start > at:
                gaps.append((at, min(start, size)))
            at = stop
        if at < size:
            gaps.append((at, size))
        return [(start, stop) for start, stop in gaps if start < stop]

    def listed(self) -> list[tuple[int, int]]:
        """The ranges, in order."""
        return list(self._ranges)
