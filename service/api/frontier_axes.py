"""The axes of the picture of a model's levels: where sizes and losses lie, at which values a line is drawn. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.api.label_placement import Box
from service.api.text_width import text_width
from service.domain.frontier import Point

STRIP = 44.0  # below the logarithmic axis: where a loss of nought stands
SMALLEST_KLD = 1e-6
"""Below this a divergence is rounding of the stored probabilities, and is drawn as nought."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Both axes are logarithmic. `strip`: whether a loss of nought has its place below."""

    area: Box
    sizes: tuple[float, float]
    losses: tuple[float, float]
    strip: bool

    def x(self, size_bytes: float) -> float:
        """Where a size lies, from the left."""
        low, high = map(math.log, self.sizes)
        return self.area.x + self.area.width * (math.log(size_bytes) - low) / (high - low)

    def y(self, kld: float) -> float:
        """Where a divergence lies, from above."""
        if kld < SMALLEST_KLD:
            return self.area.y + self.area.height - STRIP / 2
        low, high = map(math.log, self.losses)
        return self.bottom - (self.bottom - self.area.y) * (math.log(kld) - low) / (high - low)

    @property
    def bottom(self) -> float:
        """Where the logarithmic part ends."""
        return self.area.y + self.area.height - (STRIP if self.strip else 0.0)


def axes_in(area: Box, points: Sequence[Point]) -> Axes:
    """Axes with room for all points, of which there is at least one."""
    sizes = [max(1, point.size_bytes) for point in points]
    span = max(math.log(max(sizes) / min(sizes)), math.log(1.5))
    middle = (math.log(max(sizes)) + math.log(min(sizes))) / 2
    left, right = math.exp(middle - span * 0.56), math.exp(middle + span * 0.56)
    losses = [point.mean_kld.value for point in points if point.mean_kld.value >= SMALLEST_KLD] or [1e-3, 1.0]
    low, high = math.log10(min(losses)) - 0.12, math.log10(max(losses)) + 0.12
    if high - low < 1:
        low, high = (low + high - 1) / 2, (low + high + 1) / 2
    strip = any(point.mean_kld.value < SMALLEST_KLD for point in points)
    return Axes(area, (left, right), (10**low, 10**high), strip)


_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))


def size(size_bytes: float) -> str:
    """`3.60 MiB`: three figures, in binary units as the tables of levels have them."""
    unit, one = next(((unit, one) for unit, one in _UNITS if size_bytes >= one), _UNITS[-1])
    value = size_bytes / one
    return f"{value:.0f} {unit}" if value >= 100 or one == 1 else f"{value:.{2 if value < 10 else 1}f} {unit}"


def plain(value: float) -> str:
    """A power of ten or a small multiple of one, without an exponent."""
    return f"{value:.{max(0, -math.floor(math.log10(value)))}f}"


def size_ticks(axes: Axes) -> list[tuple[float, str]]:
    """Round sizes with room between them: the coarsest series that gives at least three, else the finest."""
    low, high = axes.sizes
    found: list[tuple[float, str]] = []
    for series in (
        (1, 4, 16, 64, 256),
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        _fine(1),
        _fine(0.5),
        _fine(0.2),
        _fine(0.1),
    ):
        ticks = sorted(
            (mantissa * one, f"{mantissa:g} {unit}")
            for unit, one in _UNITS
            for mantissa in series
            if low <= mantissa * one <= high and mantissa < 1024
        )
        found = _spaced(ticks, axes)
        if len(found) >= 3:
            break
    return found


def _fine(step: float) -> tuple[float, ...]:
    """Multiples of `step` whose distance grows with them, as that of a logarithmic axis shrinks."""
    found, value = [], step
    while value < 1024:
        found.append(round(value, 1))
        value += step * max(1, 2 ** math.floor(math.log2(value / (8 * step)) + 1))
    return tuple(found)


def _spaced(ticks: Sequence[tuple[float, str]], axes: Axes) -> list[tuple[float, str]]:
    """The ticks from the left, without those whose text would come too near the one before."""
    kept: list[tuple[float, str]] = []
    for value, text in ticks:
        if not kept or axes.x(value) - axes.x(kept[-1][0]) > 14 + text_width(text, 12.5):
            kept.append((value, text))
    return kept


def loss_ticks(axes: Axes) -> list[float]:
    """Powers of ten, with multiples between them where there are few."""
    low, high = axes.losses
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1, 3) if math.log10(high / low) < 3.4 else (1,)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    # One that nearly lies on the edge of the strip would only be noise there.
    return [value for value in ticks if low <= value <= high and (axes.bottom - axes.y(value) > 9 or not axes.strip)]
