"""What the tensors of a model cost at other types, as far as there is time to find out. In a job's child.

Every pair of tensor and type is measured, or groups of tensors and the rest estimated (guide.py). Measurements are
kept (known.py), so that a search that was cut off, or one for another target, goes on with what there is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import numpy as np

from service.domain.evaluation import Estimate
from service.quantization import guide
from service.quantization.choices import Choices
from service.quantization.known import Known
from service.quantization.patches import Patches
from service.quantization.sensitivity import Bench

Losses = dict[str, dict[str, float]]
"""Tensor -> type -> mean KL divergence, as far as it adds up."""
Report = Callable[[float, str], None]

_LEARN_SHARE = 0.7  # of the time and of the progress; the rest is for looking at mixes
_REFERENCE_SHARE = 0.05  # of the progress
_MOST_WINDOWS = 24
_FEWEST_WINDOWS = 2
_FULL_WINDOWS = 8  # with fewer windows than this for all pairs, groups of tensors get more of them
_GROUP_MEASUREMENTS = 80
# Groups are measured near these bits: far above noise and not yet out of proportion; the same for every target, so
# that the next search on the same source finds its measurements made.
_PROBE_BITS = 3.5
_COARSE_PROBE_BITS = 2.5


class Meter:
    """Measures types of tensors on one bench, remembers, and keeps an eye on the time and the progress."""

    def __init__(
        self,
        bench: Bench,
        patches: Patches,
        choices: Choices,
        known: Known,
        *,
        started: float,
        max_seconds: float,
        report: Report,
    ) -> None:
        """`max_seconds` count from `started` (time.monotonic)."""
        self._bench = bench
        self._patches = patches
        self._choices = choices
        self._known = known
        self._started = started
        self._max_seconds = max_seconds
        self._report = report
        self._fraction, self._detail = 0.0, ""
        self._measured: set[tuple[tuple[str, str], ...]] = set()
        self._each = 0.0  # seconds of one measurement
        self.names = sorted(choices.options)
        self.guide = ""  # "measured" or "estimated", once learned

    def learn(self, text: str, *, chunks: int | None, how: str) -> Losses:
        """The losses of all choices, on at most `chunks` windows of the text. `how` is a `SearchOptions.guide`.

        Raises what the bench raises.
        """
        self.guide = self._prepare(text, chunks, how)
        losses = self._measure_pairs() if self.guide == "measured" else self._estimate()
        self._complete(losses)
        return losses

    def measure(self, types: Mapping[str, str]) -> Estimate:
        """Divergence with these types: measured now, or known from before. Types that tensors keep are no change."""
        changed = {name: kind for name, kind in types.items() if self._choices.kept.get(name) != kind}
        self._measured.add(tuple(sorted(changed.items())))
        if not changed:
            return Estimate(0.0, 0.0)
        known = self._known.get(changed)
        if known is None:
            begun = time.monotonic()
            found = self._bench.measure(changed, lambda _share: self.tell(self._fraction, None))
            self._each = max(self._each * 0.9, time.monotonic() - begun)  # the slowest lately
            size = sum(self._choices.options[name][kind] for name, kind in changed.items())
            self._known.add(changed, size, found.value, found.error)
            known = found.value, found.error
        return Estimate(*known)

    def has_time_for(self, measurements: int) -> bool:
        """Whether so many more fit."""
        return time.monotonic() + measurements * self._each <= self._started + self._max_seconds

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def pairs(self) -> tuple[int, int]:
        """Pairs of tensor and type that were measured alone, and the others."""
        every = {(name, kind) for name in self.names for kind in self._open(name)}
        alone = sum(len(types) == 1 and types[0] in every for types in self._measured)
        return alone, len(every) - alone

    def tell(self, fraction: float, detail: str | None) -> None:
        """Report progress, which never goes back; None leaves the words as they are."""
        self._fraction = max(self._fraction, fraction)
        self._detail = self._detail if detail is None else detail
        self._report(self._fraction, self._detail)

    def tell_looking(self, share: float, detail: str) -> None:
        """Report progress of what comes after learning."""
        self.tell(_LEARN_SHARE + (1 - _LEARN_SHARE) * share, detail)

    def _tell_learning(self, share: float, detail: str) -> None:
        self.tell(_REFERENCE_SHARE + (_LEARN_SHARE - _REFERENCE_SHARE) * min(share, 1.0), detail)

    def _prepare(self, text: str, chunks: int | None, how: str) -> str:
        """Compute the reference, on as much text as there is time for; "auto" becomes what there is time for."""
        windows = self._bench.cut(text, None)
        pairs = sum(len(self._open(name)) for name in self._measurable())
        self._bench.add_reference(windows[0])  # warms up
        begun = time.monotonic()
        self._bench.add_reference(windows[len(windows) // 2])
        each = time.monotonic() - begun
        self._bench.forget_reference()
        room = self._max_seconds * _LEARN_SHARE
        if how == "auto":
            how = "measured" if pairs * each * _FULL_WINDOWS <= room else "estimated"
        wanted = pairs if how == "measured" else min(pairs, _GROUP_MEASUREMENTS)
        count = int(room / (each * max(1, wanted)))
        count = max(_FEWEST_WINDOWS, min(count, _MOST_WINDOWS)) if chunks is None else chunks
        if chunks is None and self._known.windows is not None:
            count = self._known.windows  # a search that goes on looks at what it looked at
        count = min(count, len(windows), self._bench.most_windows)
        self._known.begin(count, len(windows))
        # Spread over the text: it may change its subject.
        for number, index in enumerate(np.linspace(0, len(windows) - 1, count).round().astype(int)):
            self._bench.add_reference(windows[index])
            self.tell(_REFERENCE_SHARE * (number + 1) / count, f"window {number + 1} of {count}")
        self._each = each * count
        return how

    def _measurable(self) -> list[str]:
        return [name for name in self.names if name in self._bench.measurable]

    def _open(self, name: str) -> list[str]:
        """The types that change a tensor, smallest first."""
        kept = self._choices.kept.get(name)
        return [kind for kind in self._choices.options[name] if kind != kept]

    def _has_time_to_learn(self) -> bool:
        return time.monotonic() + self._each < self._started + self._max_seconds * _LEARN_SHARE

    def _measure_pairs(self) -> Losses:
        """Pairs nearest to the probes first, so that the others can be told from them should time run out."""
        by_rank: list[tuple[int, str, str]] = []
        for name in self._measurable():
            kinds = sorted(self._open(name), key=lambda kind: self._distance(name, kind, _PROBE_BITS))
            by_rank += [(rank, name, kind) for rank, kind in enumerate(kinds)]
        losses: Losses = {}
        for number, (_, name, kind) in enumerate(sorted(by_rank)):
            if self._known.get({name: kind}) is None and not self._has_time_to_learn():
                break
            losses.setdefault(name, {})[kind] = self.measure({name: kind}).value
            self._tell_learning((number + 1) / len(by_rank), f"tensor and type {number + 1} of {len(by_rank)}")
        return losses

    def _estimate(self) -> Losses:
        names = [name for name in self._measurable() if self._open(name)]
        probes = {name: self._nearest(name, _PROBE_BITS) for name in names}
        coarse = {name: self._nearest(name, _COARSE_PROBE_BITS) for name in names}
        done = 0

        def measure(types: Mapping[str, str]) -> float:
            nonlocal done
            value = self.measure(types).value
            done += 1
            share = max(done / _GROUP_MEASUREMENTS, self.seconds() / max(1e-3, self._max_seconds * _LEARN_SHARE))
            self._tell_learning(share, f"group {done}")
            return value

        def more() -> bool:
            return done < _GROUP_MEASUREMENTS and self._has_time_to_learn()

        estimate = guide.estimate(names, probes, coarse, self._patches.error, measure, more)
        open_types = {name: self._open(name) for name in names}
        return estimate.losses(open_types, self._patches.error)

    def _nearest(self, name: str, aim: float) -> str:
        return min(self._open(name), key=lambda kind: self._distance(name, kind, aim))

    def _distance(self, name: str, kind: str, aim: float) -> float:
        return abs(self._choices.options[name][kind] * 8 / math.prod(self._choices.shapes[name]) - aim)

    def _complete(self, losses: Losses) -> None:
        """What was not measured, by errors: of the same tensor at other types, else of other tensors. Kept is free."""
        if any(kind not in losses.get(name, {}) for name in self.names for kind in self._open(name)):
            own = {name: self._rate(name, found) for name, found in losses.items() if found}
            common = float(np.median(list(own.values()))) if own else 1.0
            for name in self.names:
                found = losses.setdefault(name, {})
                for kind in self._open(name):
                    if kind not in found:
                        found[kind] = own.get(name, common) * self._patches.error(name, kind)
        for name, kept in self._choices.kept.items():
            losses.setdefault(name, {})[kept] = 0.0

    def _rate(self, name: str, found: Mapping[str, float]) -> float:
        error = sum(self._patches.error(name, kind) for kind in found)
        return sum(found.values()) / error if error > 0 else 0.0
