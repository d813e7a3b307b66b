"""Where the labels of a picture's points go, so that none covers another. Pure geometry in pixels; y grows downwards.

Every label has a set of places around its point, each with a cost; labels move in turns to their cheapest place until
none moves. One that still covers another takes the nearest free place of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DISTANCES = (8.0, 13.0, 20.0, 29.0, 40.0, 54.0, 72.0, 94.0, 120.0)
_DIRECTIONS = 16
_KEPT = 44  # places of a label that are looked at; the others cost more for reasons that do not change
_ROUNDS = 12
_MARGIN = 1.5  # between labels, and around lines
_MARKER = 6.0  # half the width of a point's marker, with some air
_LEADER_FROM = 12.0  # labels farther from their point get a line to it

_COVERS_LABEL = 400.0
_COVERS_MARKER = 160.0
_COVERS_LINE = 70.0
_LEADER_HITS_LABEL = 120.0
_LEADERS_CROSS = 60.0
_LEADER_HITS_MARKER = 45.0
_LEADER_CROSSES_LINE = 60.0
_WRONG_SIDE = 1.8  # times the square of the steps turned away


Segment = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box, margin: float = 0.0) -> bool:
        """Whether the two have some area in common, or are nearer than `margin`."""
        return (
            self.x < other.x + other.width + margin
            and other.x < self.x + self.width + margin
            and self.y < other.y + other.height + margin
            and other.y < self.y + self.height + margin
        )

    def contains(self, other: Box) -> bool:
        """Whether `other` lies within."""
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.x + other.width <= self.x + self.width
            and other.y + other.height <= self.y + self.height
        )

    def grown(self, by: float) -> Box:
        """This box with a margin around it."""
        return Box(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of this box that is nearest to (x, y)."""
        return min(max(x, self.x), self.x + self.width), min(max(y, self.y), self.y + self.height)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A point whose label takes `width` x `height`. `towards` is the direction, in radians, where it is liked best."""

    x: float
    y: float
    width: float
    height: float
    towards: float


@dataclass(frozen=True, slots=True)
class Label:
    """Where a label goes. `align` is how its text stands in its box; `leader` the end of a line to its point."""

    box: Box
    align: str  # "start", "middle" or "end", as SVG's text-anchor
    leader: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class _Place:
    label: Label
    leader: Segment | None  # from the point to the label
    cost: float


def place_labels(anchors: Sequence[Anchor], area: Box, lines: Sequence[Segment] = ()) -> list[Label]:
    """A place within `area` for every label, none over another while the area has room for all of them.

    Labels keep off the markers of all points and off `lines` where they can.
    """
    markers = [Box(anchor.x - _MARKER, anchor.y - _MARKER, 2 * _MARKER, 2 * _MARKER) for anchor in anchors]
    places = [_places(anchor, marker, markers, area, lines) for anchor, marker in zip(anchors, markers, strict=True)]
    chosen: list[_Place | None] = [None] * len(anchors)
    # Those with the least choice go first.
    order = sorted(range(len(anchors)), key=lambda index: (-places[index][0].cost if places[index] else -1e9, index))
    for _ in range(_ROUNDS):
        moved = False
        for index in order:
            others = [place for at, place in enumerate(chosen) if place is not None and at != index]
            best = _cheapest(places[index], others)
            moved = moved or best is not chosen[index]
            chosen[index] = best
        if not moved:
            break
    return _apart(anchors, [place.label if place else None for place in chosen], area)


def _places(anchor: Anchor, own: Box, markers: Sequence[Box], area: Box, lines: Sequence[Segment]) -> list[_Place]:
    """The places around a point that cost least, cheapest first, as long as the other labels are not looked at."""
    found = []
    for distance in _DISTANCES:
        for step in range(_DIRECTIONS):
            label = _label_at(anchor, anchor.towards + 2 * math.pi * step / _DIRECTIONS, distance)
            if not area.contains(label.box):
                continue
            leader = None if label.leader is None else (anchor.x, anchor.y, *label.leader)
            turned = abs((step + _DIRECTIONS // 2) % _DIRECTIONS - _DIRECTIONS // 2)
            cost = distance + _WRONG_SIDE * turned**2
            cost += _COVERS_MARKER * sum(label.box.overlaps(marker) for marker in markers)
            wide = label.box.grown(_MARGIN)
            cost += _COVERS_LINE * sum(_hits(line, wide) for line in lines)
            if leader is not None:
                cost += _LEADER_HITS_MARKER * sum(marker is not own and _hits(leader, marker) for marker in markers)
                cost += _LEADER_CROSSES_LINE * sum(_cross(leader, line) for line in lines)
            found.append(_Place(label, leader, cost))
    return sorted(found, key=lambda place: place.cost)[:_KEPT]


def _cheapest(places: Sequence[_Place], others: Sequence[_Place]) -> _Place | None:
    """The best place beside the labels that stand already. `places` are in order of their own cost."""
    best, least = None, math.inf
    for place in places:
        if place.cost >= least:
            break
        cost = place.cost + _crowding(place, others)
        if cost < least:
            best, least = place, cost
    return best


def _label_at(anchor: Anchor, direction: float, distance: float) -> Label:
    across, down = math.cos(direction), math.sin(direction)
    x, y = anchor.x + across * distance, anchor.y + down * distance
    align = "start" if across > 0.38 else "end" if across < -0.38 else "middle"
    left = x if align == "start" else x - anchor.width if align == "end" else x - anchor.width / 2
    # Beside the point the label stands at its height; above and below it keeps its whole height away.
    top = y - anchor.height / 2 + down * anchor.height / 2
    box = Box(left, top, anchor.width, anchor.height)
    return Label(box, align, box.nearest(anchor.x, anchor.y) if distance > _LEADER_FROM else None)


def _crowding(place: _Place, others: Sequence[_Place]) -> float:
    """What a place costs beside the labels that stand already."""
    cost = 0.0
    for other in others:
        if place.label.box.overlaps(other.label.box, _MARGIN):
            cost += _COVERS_LABEL
            continue
        if place.leader is not None:
            cost += _LEADER_HITS_LABEL * _hits(place.leader, other.label.box)
            cost += _LEADERS_CROSS * (other.leader is not None and _cross(place.leader, other.leader))
        cost += _LEADER_HITS_LABEL * (other.leader is not None and _hits(other.leader, place.label.box))
    return cost


def _apart(anchors: Sequence[Anchor], labels: Sequence[Label | None], area: Box) -> list[Label]:
    """Labels that cover an earlier one moved to the nearest free place of a grid."""
    placed: list[Label] = []
    for anchor, label in zip(anchors, labels, strict=True):
        taken = [other.box for other in placed]
        if label is None or any(label.box.overlaps(box, _MARGIN) for box in taken):
            later = [other.box for other in labels[len(placed) + 1 :] if other is not None]
            label = _free_place(anchor, taken, later, area) or label or _label_at(anchor, 0.0, _DISTANCES[0])
        placed.append(label)
    return placed


def _free_place(anchor: Anchor, taken: Sequence[Box], later: Sequence[Box], area: Box) -> Label | None:
    best: tuple[tuple[bool, float], Label] | None = None
    rows = int((area.height - anchor.height) // (anchor.height + 2 * _MARGIN))
    columns = int((area.width - anchor.width) // 8)
    for row in range(rows + 1):
        for column in range(columns + 1):
            box = Box(
                area.x + column * 8, area.y + row * (anchor.height + 2 * _MARGIN), anchor.width, anchor.height
            )  # fmt: skip
            if any(box.overlaps(other, _MARGIN) for other in taken):
                continue
            end = box.nearest(anchor.x, anchor.y)
            rank = (any(box.overlaps(other, _MARGIN) for other in later), math.dist(end, (anchor.x, anchor.y)))
            if best is None or rank < best[0]:
                best = rank, Label(box, "middle", end)
    return best[1] if best else None


def _hits(line: Segment, box: Box) -> bool:
    """Whether a straight line passes through a box (Liang and Barsky's clipping)."""
    x, y, to_x, to_y = line
    if (x <= box.x and to_x <= box.x) or (y <= box.y and to_y <= box.y):
        return False
    if (x >= box.x + box.width and to_x >= box.x + box.width) or (
        y >= box.y + box.height and to_y >= box.y + box.height
    ):
        return False
    begin, end = 0.0, 1.0
    for delta, low, high in (
        (to_x - x, box.x - x, box.x + box.width - x),
        (to_y - y, box.y - y, box.y + box.height - y),
    ):
        if delta == 0:
            if low >= 0 or high <= 0:
                return False
            continue
        enter, leave = sorted((low / delta, high / delta))
        begin, end = max(begin, enter), min(end, leave)
    return begin < end


def _cross(one: Segment, other: Segment) -> bool:
    """Whether two straight lines cross; lines that only touch do not."""
    return _sides(one, other) < 0 and _sides(other, one) < 0


def _sides(line: Segment, other: Segment) -> float:
    """Negative when the ends of `other` lie on different sides of `line`."""
    x, y, to_x, to_y = line
    first = (to_x - x) * (other[1] - y) - (to_y - y) * (other[0] - x)
    second = (to_x - x) * (other[3] - y) - (to_y - y) * (other[2] - x)
    return first * second if abs(first) > 1e-6 and abs(second) > 1e-6 else 0.0
