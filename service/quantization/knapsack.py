"""The multiple-choice knapsack: one choice of each item, within a budget of bytes and one of seconds, of least loss.

Pure functions. A Lagrange multiplier gives a mix and a bound that no mix goes below (H. Everett, 1963; for this
problem P. Sinha and A. Zoltners, 1979); the bound strikes out most choices, and dynamic programming over the bytes
decides the rest: exactly where the table is small enough, else on sizes rounded up, and the bound tells how near.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_CELLS = 1 << 17
_MAX_TABLE_BYTES = 128 * 1024 * 1024
_BISECTIONS = 40
# A bound computed in floating point may strike out the best choice by a rounding error.
_SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store an item: `size` in bytes, `loss` and `seconds` as far as they add up over items."""

    size: int
    loss: float
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Mix:
    """A solution: the index of the choice of each item. No mix within the budgets has less loss than `bound`."""

    picks: tuple[int, ...]
    size: int
    loss: float
    seconds: float
    bound: float


Items = Sequence[Sequence[Choice]]


def smallest(items: Items) -> int:
    """Bytes of the smallest mix."""
    return sum(min(choice.size for choice in item) for item in items)


def fastest(items: Items, max_size: int) -> Mix | None:
    """The mix of least seconds within `max_size` bytes; None when nothing is that small."""
    timed = [[Choice(choice.size, choice.seconds, choice.seconds) for choice in item] for item in items]
    mix = _least_loss(timed, max_size)
    return None if mix is None else _mix(items, mix.picks, -math.inf)


def least_loss(items: Items, max_size: int, max_seconds: float | None = None) -> Mix | None:
    """The mix of least loss within the budgets; None when there is none.

    Exact for one budget while the table holds (far beyond a thousand items of a dozen choices in practice); with both,
    the best of a series of multipliers for the seconds, mended item by item, with its bound.
    """
    free = _least_loss(items, max_size)
    if free is None or max_seconds is None or free.seconds <= max_seconds:
        return free
    quickest = fastest(items, max_size)
    if quickest is None or quickest.seconds > max_seconds:
        return None
    best, bound = quickest, free.bound
    low, high = 0.0, _first_price(items)
    for _ in range(_BISECTIONS):
        price = (low + high) / 2 if math.isfinite(high) else max(1.0, low * 4)
        priced = [[Choice(c.size, c.loss + price * c.seconds, c.seconds) for c in item] for item in items]
        found = _least_loss(priced, max_size)
        assert found is not None
        bound = max(bound, found.bound - price * max_seconds)
        mix = _mix(items, found.picks, bound)
        if mix.seconds > max_seconds:
            low = price
            continue
        high = price
        if mix.loss < best.loss:
            best = mix
        if high - low <= 1e-6 * high:
            break
    best = _mended(items, best, max_size, max_seconds)
    return _mix(items, best.picks, min(bound, best.loss))


def least_size(items: Items, max_loss: float, max_seconds: float | None = None) -> Mix | None:
    """The smallest mix with at most `max_loss`; None when none loses so little in time."""
    low, high = smallest(items) - 1, sum(max(choice.size for choice in item) for item in items)
    best = least_loss(items, high, max_seconds)
    if best is None or best.loss > max_loss:
        return None
    high = best.size
    while low + 1 < high:
        middle = (low + high) // 2
        mix = least_loss(items, middle, max_seconds)
        if mix is None or mix.loss > max_loss:
            low = middle
        else:
            best, high = mix, mix.size
    return best


def _first_price(items: Items) -> float:
    """A price of seconds at which they outweigh every loss."""
    losses = sum(max(choice.loss for choice in item) - min(choice.loss for choice in item) for item in items)
    gaps = [abs(a.seconds - b.seconds) for item in items for a in item for b in item if a.seconds != b.seconds]
    return losses / min(gaps) if gaps else math.inf


def _mix(items: Items, picks: Sequence[int], bound: float) -> Mix:
    chosen = [item[pick] for item, pick in zip(items, picks, strict=True)]
    return Mix(
        picks=tuple(picks),
        size=sum(choice.size for choice in chosen),
        loss=math.fsum(choice.loss for choice in chosen),
        seconds=math.fsum(choice.seconds for choice in chosen),
        bound=bound,
    )


def _mended(items: Items, mix: Mix, max_size: int, max_seconds: float | None) -> Mix:
    """Single changes that lose less and fit, best first, until there is none."""
    picks, size, seconds = list(mix.picks), mix.size, mix.seconds
    while True:
        best: tuple[float, int, int] | None = None
        for index, item in enumerate(items):
            now = item[picks[index]]
            for number, choice in enumerate(item):
                fits = size - now.size + choice.size <= max_size
                if max_seconds is not None:
                    fits = fits and seconds - now.seconds + choice.seconds <= max_seconds
                if fits and choice.loss < now.loss and (best is None or now.loss - choice.loss > best[0]):
                    best = (now.loss - choice.loss, index, number)
        if best is None:
            return _mix(items, picks, mix.bound)
        _, index, number = best
        now, choice = items[index][picks[index]], items[index][number]
        size, seconds = size - now.size + choice.size, seconds - now.seconds + choice.seconds
        picks[index] = number


# --- one budget --------------------------------------------------------------------------------------------------


def _least_loss(items: Items, max_size: int) -> Mix | None:
    if smallest(items) > max_size:
        return None
    fronts = [_front(item) for item in items]
    greedy, price = _greedy(items, fronts, max_size)
    greedy = _mended(items, greedy, max_size, None)
    prices = [[items[i][j].loss + price * items[i][j].size for j in front] for i, front in enumerate(fronts)]
    cheapest = [min(row) for row in prices]
    bound = math.fsum(cheapest) - price * max_size
    gap = greedy.loss - bound
    scale = max(abs(greedy.loss), abs(bound), price * max_size)
    if gap <= _SLACK * scale:
        return _mix(items, greedy.picks, min(bound, greedy.loss))
    # A choice dearer than the cheapest of its item by more than the gap is in no better mix.
    core = [
        [j for j, dear in zip(front, row, strict=True) if dear - least <= gap + _SLACK * scale]
        for front, row, least in zip(fronts, prices, cheapest, strict=True)
    ]
    picks, exact = _table(items, core, max_size)
    found = None if picks is None else _mended(items, _mix(items, picks, bound), max_size, None)
    best = greedy if found is None or greedy.loss <= found.loss else found
    return _mix(items, best.picks, best.loss if exact else min(bound, best.loss))


def _front(item: Sequence[Choice]) -> list[int]:
    """The choices that no other one beats in size and loss, smallest first."""
    front: list[int] = []
    for index in sorted(range(len(item)), key=lambda i: (item[i].size, item[i].loss)):
        if not front or item[index].loss < item[front[-1]].loss:
            front.append(index)
    return front


def _greedy(items: Items, fronts: Sequence[Sequence[int]], max_size: int) -> tuple[Mix, float]:
    """Steps along the lower convex hulls, best loss for a byte first, and the rate of the first that does not fit.

    That rate is the multiplier of the linear relaxation's optimum.
    """
    picks = [front[0] for front in fronts]
    steps: list[tuple[float, int, int, int]] = []  # rate, item, position along its hull, choice
    for index, front in enumerate(fronts):
        hull = _hull(items[index], front)
        for position in range(1, len(hull)):
            before, after = items[index][hull[position - 1]], items[index][hull[position]]
            rate = (before.loss - after.loss) / (after.size - before.size)
            steps.append((-rate, index, position, hull[position]))
    steps.sort()
    size = sum(items[i][pick].size for i, pick in enumerate(picks))
    price, full = 0.0, [False] * len(fronts)
    for rate, index, _, pick in steps:
        grown = size - items[index][picks[index]].size + items[index][pick].size
        if full[index] or grown > max_size:
            if not any(full):
                price = -rate
            full[index] = True  # a later step of this item builds on the one left out
            continue
        picks[index], size = pick, grown
    return _mix(items, picks, -math.inf), price


def _hull(item: Sequence[Choice], front: Sequence[int]) -> list[int]:
    hull: list[int] = []
    for index in front:
        while len(hull) > 1 and _above(item[hull[-2]], item[hull[-1]], item[index]):
            hull.pop()
        hull.append(index)
    return hull


def _above(left: Choice, middle: Choice, right: Choice) -> bool:
    """Whether `middle` lies on or above the line from `left` to `right`."""
    return (left.loss - middle.loss) * (right.size - left.size) <= (left.loss - right.loss) * (middle.size - left.size)


def _table(items: Items, core: Sequence[Sequence[int]], max_size: int) -> tuple[list[int] | None, bool]:
    """Dynamic programming over the bytes above the smallest of each item. The picks, and whether they are the best.

    None when rounding leaves no room.
    """
    bases = [min(items[i][j].size for j in choices) for i, choices in enumerate(core)]
    room = max_size - sum(bases)
    spans = [
        max(items[i][j].size for j in choices) - base for i, (choices, base) in enumerate(zip(core, bases, strict=True))
    ]
    room = min(room, sum(spans))
    if room < 0:
        return None, False
    unit = math.gcd(*(items[i][j].size - bases[i] for i, choices in enumerate(core) for j in choices)) or 1
    open_items = [i for i, span in enumerate(spans) if span]
    cells = min(_MAX_CELLS, _MAX_TABLE_BYTES // max(1, len(open_items)))
    exact = room // unit < cells
    if not exact:
        unit = -(-room // (cells - 1))
    width = room // unit + 1
    least: NDArray[np.float64] = np.zeros(width)
    chosen = np.zeros((len(open_items), width), dtype=np.uint8)
    for row, index in enumerate(open_items):
        grown: NDArray[np.float64] = np.full(width, np.inf)
        for number, j in enumerate(core[index]):
            steps = -(-(items[index][j].size - bases[index]) // unit)
            if steps >= width:
                continue
            reached = least[: width - steps] + items[index][j].loss
            better = reached < grown[steps:]
            grown[steps:][better] = reached[better]
            chosen[row, steps:][better] = number
        least = grown
    if not np.isfinite(least[-1]):
        return None, False
    picks = [choices[0] for choices in core]
    cell = width - 1
    for row in range(len(open_items) - 1, -1, -1):
        index = open_items[row]
        picks[index] = core[index][chosen[row, cell]]
        cell -= -(-(items[index][picks[index]].size - bases[index]) // unit)
    return picks, exact
