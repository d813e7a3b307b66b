"""Size against loss: which measured levels of a model nothing beats, and what beats the others. Pure.

Loss is mean KL divergence to the source. Only figures of one yardstick are compared: the same source, text and windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from service.domain.evaluation import Card, Estimate

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a divergence was measured with; figures of different ones cannot be compared."""

    base_digest: str
    dataset_digest: str
    window: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Point:
    """One level in the picture. `is_source`: the variant that the others are held to; its loss is nought."""

    name: str  # canonical name of the variant
    label: str  # what the picture says: its tag, or the level alone where that is enough
    size_bytes: int
    bits_per_weight: float
    mean_kld: Estimate  # nats
    is_source: bool = False


@dataclass(frozen=True, slots=True)
class Judged:
    """A point, and the point of the front that is no larger and loses no more (None: it is on the front itself)."""

    point: Point
    dominated_by: Point | None

    @property
    def on_front(self) -> bool:
        """Whether nothing beats it."""
        return self.dominated_by is None


def pareto_front(items: Iterable[Item], cost: Callable[[Item], float], loss: Callable[[Item], float]) -> list[Item]:
    """The items that none beats in cost and loss, cheapest first. Items with equal figures stay together."""
    front: list[Item] = []
    for item in sorted(items, key=lambda item: (cost(item), loss(item))):
        if not front or loss(item) < loss(front[-1]) or _equal(item, front[-1], cost, loss):
            front.append(item)
    return front


def judge(points: Sequence[Point]) -> tuple[Judged, ...]:
    """Every point, smallest first. Of those that beat a point, the one with the least loss is named."""
    front = pareto_front(points, _size, _loss)
    judged = []
    for point in sorted(points, key=lambda point: (point.size_bytes, _loss(point), point.name)):
        # Losses fall along the front, so the largest that is no larger than this point loses least.
        best = [other for other in front if other.size_bytes <= point.size_bytes][-1]
        beaten = (_size(best), _loss(best)) != (_size(point), _loss(point))
        judged.append(Judged(point, best if beaten else None))
    return tuple(judged)


def yardstick(card: Card | None) -> Yardstick | None:
    """What the card's divergence was measured with; None when it has none."""
    if card is None or card.text is None or card.text.divergence is None:
        return None
    text = card.text
    return Yardstick(card.text.divergence.base_digest, text.dataset_digest, text.window, text.chunks)


def common_yardstick(runs: Iterable[Sequence[Card]], base_digest: str | None = None) -> Yardstick | None:
    """The yardstick of most variants, of the latest where several have as many; with `base_digest`, only against that.

    `runs` has the cards of each variant. None when no divergence was measured.
    """
    seen: dict[Yardstick, tuple[int, str]] = {}
    for cards in runs:
        latest: dict[Yardstick, str] = {}
        for card in cards:
            found = yardstick(card)
            if found is not None and base_digest in (None, found.base_digest):
                latest[found] = max(latest.get(found, ""), card.created_at)
        for found, at in latest.items():
            count, before = seen.get(found, (0, ""))
            seen[found] = count + 1, max(before, at)
    return max(seen, key=lambda stick: (*seen[stick], stick.dataset_digest, stick.window), default=None)


def measured_by(stick: Yardstick | None, cards: Iterable[Card]) -> Card | None:
    """The latest card with that yardstick whose divergence is a number; None when there is none."""
    found = [card for card in cards if stick is not None and yardstick(card) == stick and _is_number(card)]
    return max(found, key=lambda card: card.created_at, default=None)


def _is_number(card: Card) -> bool:
    divergence = card.text.divergence if card.text else None
    return divergence is not None and math.isfinite(divergence.mean_kld.value)


def _size(point: Point) -> float:
    return point.size_bytes


def _loss(point: Point) -> float:
    return point.mean_kld.value


def _equal(one: Item, other: Item, cost: Callable[[Item], float], loss: Callable[[Item], float]) -> bool:
    return (cost(one), loss(one)) == (cost(other), loss(other))
