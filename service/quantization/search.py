"""The mix of tensor types that loses least within a budget: measure what tensors cost, solve, look again, solve again.

Child processes. What single tensors cost is measured, or estimated from groups of them (guide.py); the knapsack
(knapsack.py) chooses; the chosen mix is then measured as a whole, and tensors are put back one by one to see what each
costs in its company, which corrects the losses for a second choice. Only a mix that measures better replaces one.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from service.domain.errors import InvalidParameter
from service.domain.evaluation import Estimate, SearchReport, Target
from service.quantization import guide
from service.quantization.choices import Choices
from service.quantization.knapsack import Choice, Mix, fastest, least_loss, least_size
from service.quantization.known import Known
from service.quantization.patches import Patches
from service.quantization.sensitivity import Bench

Losses = dict[str, dict[str, float]]
"""Tensor -> type -> mean KL divergence, as far as it adds up."""
Seconds = Mapping[str, Mapping[str, float]]
"""Tensor -> type -> its part of the seconds a token takes."""
Report = Callable[[float, str], None]

_MEASURE_SHARE = 0.7  # of the time, for what tensors cost; the rest corrects it
_FEWEST_LOOKS = 3  # measurements that a look at a mix is worth beginning for
_MOST_WINDOWS = 24
_FEWEST_WINDOWS = 2
_FULL_WINDOWS = 8  # with fewer windows than this for all pairs, groups of tensors get more of them
_GROUP_MEASUREMENTS = 80
_FACTORS = (0.2, 5.0)  # what one look may correct a loss by
_DOUBT = 1.2  # of the logarithm of a rate: steps farther from the going one would need an error of that size
# Groups are measured near these bits: far above noise and not yet out of proportion; the same for every target, so
# that the next search on the same source finds its measurements made.
_PROBE_BITS = 3.5
_COARSE_PROBE_BITS = 2.5
_QUALITY_STEPS = 8
_SURE = 1.64  # standard errors: a bound on the divergence holds for the text's population at 95 %


@dataclass(frozen=True, slots=True)
class Found:
    """A mix: types of the tensors that were chosen, its bytes as a file, and its measured divergence."""

    types: Mapping[str, str]
    size_bytes: int
    kld: Estimate
    measured_pairs: int
    estimated_pairs: int
    guide: str
    seconds: float
    rest: Mapping[str, str]

    def report(self, target: Target, dataset: str) -> SearchReport:
        """As it is stored with the variant."""
        counts = Counter([*self.types.values(), *self.rest.values()])
        return SearchReport(
            target=target,
            size_bytes=self.size_bytes,
            predicted_kld=self.kld.value,
            search_dataset=dataset,
            measured_pairs=self.measured_pairs,
            estimated_pairs=self.estimated_pairs,
            search_seconds=self.seconds,
            guide=self.guide,
            types=tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """The target in the units of the choices: bytes of the file, seconds a token."""

    bytes: int | None
    kld: float | None
    seconds: float | None


def budget(target: Target, choices: Choices) -> Budget:
    """What `target` leaves for a file with these choices. Raises InvalidParameter where that is too little."""
    sizes = [target.size_bytes] if target.size_bytes is not None else []
    if target.bits_per_weight is not None:
        count = sum(math.prod(shape) for shape in choices.shapes.values()) + choices.rest_weights
        data = int(target.bits_per_weight * count / 8)
        sizes.append(data - choices.rest_data_bytes + choices.rest_bytes)
    least = choices.rest_bytes + sum(min(sizes_of.values()) for sizes_of in choices.options.values())
    if sizes and min(sizes) < least:
        raise InvalidParameter(
            f"No mix is that small: the smallest of these types takes {least} bytes. Allow more, or smaller types.",
            param="target",
        )
    speed = target.min_speed
    return Budget(min(sizes) if sizes else None, target.max_kld, None if speed is None else 1.0 / speed)


class Search:
    """One search over one bench: learn once, then choose."""

    def __init__(
        self,
        bench: Bench,
        patches: Patches,
        choices: Choices,
        known: Known,
        *,
        seconds: Seconds | None,
        started: float,
        max_seconds: float,
        report: Report,
    ) -> None:
        """`seconds` None: speed does not matter. `max_seconds` count from `started` (time.monotonic)."""
        self._bench = bench
        self._patches = patches
        self._choices = choices
        self._known = known
        self._seconds = seconds
        self._started = started
        self._max_seconds = max_seconds
        self._report = report
        self._names = sorted(choices.options)
        self._measured: set[tuple[tuple[str, str], ...]] = set()
        self._each = 0.0  # seconds of one measurement
        self._fraction, self._detail = 0.0, ""
        self._guide = ""
        self._losses: Losses = {}
        self._pairs: set[tuple[str, str]] = set()

    def learn(self, text: str, *, chunks: int | None, how: str) -> None:
        """Find out what tensors cost, on at most `chunks` windows of the text. Raises what the bench raises."""
        self._guide = self._prepare(text, chunks, how)
        self._losses = self._measure_pairs() if self._guide == "measured" else self._estimate()
        self._pairs = {(name, kind) for name in self._losses for kind in self._open(name)}
        self._complete(self._losses)

    def choose(self, target: Budget) -> Found:
        """The mix for a target, once or for several. Raises InvalidParameter when it cannot be kept."""
        best, joint = self._improve(target, self._losses)
        types = self._types(best)
        single = sum(len(types) == 1 and types[0] in self._pairs for types in self._measured)
        return Found(
            types=types,
            size_bytes=self._choices.file_bytes(types),
            kld=joint,
            measured_pairs=single,
            estimated_pairs=len(self._pairs) - single,
            guide=self._guide,
            seconds=time.monotonic() - self._started,
            rest=self._choices.rest,
        )

    # --- how much of the text, and which guide

    def _prepare(self, text: str, chunks: int | None, how: str) -> str:
        """Compute the reference; "measured" or "estimated" for "auto", by what there is time for."""
        windows = self._bench.cut(text, None)
        pairs = sum(len(self._open(name)) for name in self._measurable())
        self._bench.add_reference(windows[0])  # warms up
        begun = time.monotonic()
        self._bench.add_reference(windows[len(windows) // 2])
        each = time.monotonic() - begun
        self._bench.forget_reference()
        room = self._max_seconds * _MEASURE_SHARE
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
            self._tell(0.05 * (number + 1) / count, f"window {number + 1} of {count}")
        self._each = each * count
        return how

    def _measurable(self) -> list[str]:
        return [name for name in self._names if name in self._bench.measurable]

    def _open(self, name: str) -> list[str]:
        """The types that change a tensor, smallest first."""
        kept = self._choices.kept.get(name)
        return [kind for kind in self._choices.options[name] if kind != kept]

    def _left(self) -> float:
        return self._started + self._max_seconds - time.monotonic()

    # --- measuring

    def _kld(self, types: Mapping[str, str]) -> Estimate:
        """Measured now, or known from before. Types that tensors keep are no change."""
        changed = {name: kind for name, kind in types.items() if self._choices.kept.get(name) != kind}
        self._measured.add(tuple(sorted(changed.items())))
        if not changed:
            return Estimate(0.0, 0.0)
        known = self._known.get(changed)
        if known is None:
            begun = time.monotonic()
            found = self._bench.measure(changed, lambda share: self._tell(self._fraction, None))
            self._each = max(self._each * 0.9, time.monotonic() - begun)
            size = sum(self._choices.options[name][kind] for name, kind in changed.items())
            self._known.add(changed, size, found.value, found.error)
            known = found.value, found.error
        return Estimate(*known)

    def _measure_pairs(self) -> Losses:
        pairs = [(name, kind) for name in self._measurable() for kind in self._open(name)]
        losses: Losses = {}
        for number, (name, kind) in enumerate(pairs):
            losses.setdefault(name, {})[kind] = self._kld({name: kind}).value
            self._tell(0.05 + 0.65 * (number + 1) / len(pairs), f"tensor and type {number + 1} of {len(pairs)}")
        for name in self._measurable():
            losses.setdefault(name, {})
        return losses

    def _estimate(self) -> Losses:
        names = [name for name in self._measurable() if self._open(name)]
        probes = {name: self._nearest(name, _PROBE_BITS) for name in names}
        coarse = {name: self._nearest(name, _COARSE_PROBE_BITS) for name in names}
        done = 0
        ends = self._started + self._max_seconds * _MEASURE_SHARE
        first = time.monotonic()

        def measure(types: Mapping[str, str]) -> float:
            nonlocal done
            value = self._kld(types).value
            done += 1
            share = max(done / _GROUP_MEASUREMENTS, (time.monotonic() - first) / max(1e-9, ends - first))
            self._tell(0.05 + 0.65 * min(1.0, share), f"group {done}")
            return value

        def more() -> bool:
            return done < _GROUP_MEASUREMENTS and time.monotonic() + self._each < ends

        estimate = guide.estimate(names, probes, coarse, self._patches.error, measure, more)
        open_types = {name: self._open(name) for name in names}
        return estimate.losses(open_types, self._patches.error)

    def _nearest(self, name: str, aim: float) -> str:
        count = math.prod(self._choices.shapes[name])
        sizes = self._choices.options[name]
        return min(self._open(name), key=lambda kind: abs(sizes[kind] * 8 / count - aim))

    def _complete(self, losses: Losses) -> None:
        """Losses of what no text reaches, from like errors; of what is kept, none; and none grows with the bytes."""
        rates = (
            [
                loss / error
                for name, found in losses.items()
                for kind, loss in found.items()
                if (error := self._patches.error(name, kind)) > 0
            ]
            if len(losses) < len(self._names)
            else []
        )
        rate = float(np.median(rates)) if rates else 0.0
        for name in self._names:
            found = losses.setdefault(name, {})
            for kind in self._open(name):
                if kind not in found:
                    found[kind] = rate * self._patches.error(name, kind)
            if (kept := self._choices.kept.get(name)) is not None:
                found[kept] = 0.0

    # --- choosing

    def _improve(self, target: Budget, losses: Losses) -> tuple[Mix, Estimate]:
        """Solve; look at what tensors cost in the company of that mix; solve again, as long as it gets better."""
        best, joint = self._solve(target, losses)
        for number, look in enumerate((self._by_role, self._by_step, self._by_step)):
            if self._left() < _FEWEST_LOOKS * self._each:
                break
            seen = look(losses, best, joint, number)
            mix, found = self._solve(target, seen)
            if os.environ.get("DBG"):
                print("round", number, best.loss, joint, mix.loss, found)
            if not _better(target, (mix, found), (best, joint)):
                continue
            losses, best, joint = seen, mix, found
        return best, joint

    def _by_role(self, losses: Losses, mix: Mix, joint: Estimate, number: int) -> Losses:
        """The losses, those of each role times what it costs in the mix over what it was believed to cost."""
        types = self._types(mix)
        groups = guide.roles(self._names)
        factors: dict[str, float] = {}
        for position, group in enumerate(groups):
            believed = sum(losses[name][types[name]] for name in group)
            if believed <= 0 or self._left() < 2 * self._each:
                continue
            without = {name: kind for name, kind in types.items() if name not in group}
            factors |= dict.fromkeys(group, _factor(joint.value - self._kld(without).value, believed))
            self._looked(number, position + 1, len(groups))
        return {
            name: {kind: loss * factors.get(name, 1.0) for kind, loss in found.items()}
            for name, found in losses.items()
        }

    def _by_step(self, losses: Losses, mix: Mix, joint: Estimate, number: int) -> Losses:
        """The losses, as single steps from the mix change the divergence: each tensor one type down, and one up.

        Steps that the knapsack is least sure of come first, as time may not be enough for all.
        """
        types = self._types(mix)
        steps: list[tuple[str, str]] = []
        for name, kind in types.items():
            kinds = list(self._choices.options[name])
            at = kinds.index(kind)
            steps += [(name, kinds[near]) for near in (at - 1, at + 1) if 0 <= near < len(kinds)]
        seen = {name: dict(found) for name, found in losses.items()}
        ordered = self._doubtful(losses, types, steps)
        for position, (name, kind) in enumerate(ordered):
            now, believed = losses[name][types[name]], losses[name][kind] - losses[name][types[name]]
            if believed == 0 or self._left() < 2 * self._each:
                continue
            factor = _factor(self._kld({**types, name: kind}).value - joint.value, believed)
            sizes = self._choices.options[name]
            for other, size in sizes.items():
                if (size - sizes[types[name]]) * (sizes[kind] - sizes[types[name]]) > 0:
                    seen[name][other] = now + (losses[name][other] - now) * factor
            self._looked(number, position + 1, len(ordered))
        return seen

    def _doubtful(
        self, losses: Losses, types: Mapping[str, str], steps: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """The steps whose loss for a byte is near the rate at which the mix trades them, the nearest first."""
        rates: dict[tuple[str, str], float] = {}
        for name, kind in steps:
            sizes = self._choices.options[name]
            gained = losses[name][types[name]] - losses[name][kind]
            rates[name, kind] = math.log(max(gained / (sizes[kind] - sizes[types[name]]), 1e-300))
        middle = float(np.median(list(rates.values()))) if rates else 0.0
        doubtful = [step for step in steps if abs(rates[step] - middle) <= _DOUBT]
        return sorted(doubtful, key=lambda step: abs(rates[step] - middle))

    def _looked(self, number: int, done: int, total: int) -> None:
        self._tell(0.7 + 0.1 * (number + done / total), f"round {number + 1}, {done} of {total}")

    def _solve(self, target: Budget, losses: Losses) -> tuple[Mix, Estimate]:
        """The best mix by these losses, and what it costs measured as a whole."""
        items = self._items(losses)
        if target.kld is None:
            mix = least_loss(items, self._room(target), target.seconds)
            if mix is None:
                raise self._too_slow(items, target)
            return mix, self._kld(self._types(mix))
        return self._solve_quality(target, items, target.kld)

    def _solve_quality(self, target: Budget, items: list[list[Choice]], limit: float) -> tuple[Mix, Estimate]:
        """The smallest mix whose measured divergence keeps the limit: the believed one is moved until it does."""
        believed = limit
        best: tuple[Mix, Estimate] | None = None
        for _ in range(_QUALITY_STEPS):
            mix = least_size(items, believed, target.seconds)
            if mix is None:
                break
            found = self._kld(self._types(mix))
            sure = found.value + _SURE * found.error
            if sure <= limit and (best is None or mix.size < best[0].size):
                best = mix, found
            step = limit / sure if sure > 0 else 2.0
            if best is not None and best[0].picks == mix.picks and step < 1.02:
                break
            believed *= min(max(step, 0.25), 4.0)
        if best is None:
            mix = least_loss(items, sum(max(c.size for c in item) for item in items), target.seconds)
            if mix is None:
                raise self._too_slow(items, target)
            found = self._kld(self._types(mix))
            if found.value + _SURE * found.error > limit:
                raise InvalidParameter(
                    f"No mix of these types keeps a divergence of {limit:g}: the best measures {found.value:.3g} with "
                    f"a standard error of {found.error:.1g}. Allow more, or larger types.",
                    param="target.max_kld",
                )
            best = mix, found
        if target.bytes is not None and best[0].size > self._room(target):
            raise InvalidParameter(
                f"The divergence of {limit:g} needs {best[0].size + self._choices.rest_bytes} bytes, more than the "
                "size allowed; allow one of them more.",
                param="target",
            )
        return best

    def _room(self, target: Budget) -> int:
        if target.bytes is None:
            return sum(max(sizes.values()) for sizes in self._choices.options.values())
        return target.bytes - self._choices.rest_bytes

    def _too_slow(self, items: list[list[Choice]], target: Budget) -> InvalidParameter:
        quickest = fastest(items, self._room(target))
        speed = 1.0 / quickest.seconds if quickest is not None and quickest.seconds > 0 else 0.0
        return InvalidParameter(
            f"No mix within the size is that fast: the fastest makes about {speed:.1f} tokens/s here. Ask for less, or "
            "allow types that compute faster, such as Q4_0.",
            param="target.min_speed",
        )

    def _items(self, losses: Losses) -> list[list[Choice]]:
        return [
            [
                Choice(size, losses[name][kind], self._seconds[name][kind] if self._seconds is not None else 0.0)
                for kind, size in self._choices.options[name].items()
            ]
            for name in self._names
        ]

    def _types(self, mix: Mix) -> dict[str, str]:
        return {
            name: list(self._choices.options[name])[pick] for name, pick in zip(self._names, mix.picks, strict=True)
        }

    def _tell(self, fraction: float, detail: str | None) -> None:
        self._fraction = max(self._fraction, fraction)
        if detail is not None:
            self._detail = detail
        self._report(self._fraction, self._detail)


def _factor(counted: float, believed: float) -> float:
    return min(max(counted / believed, _FACTORS[0]), _FACTORS[1])


def _better(target: Budget, new: tuple[Mix, Estimate], old: tuple[Mix, Estimate]) -> bool:
    if target.kld is not None:
        return new[0].size < old[0].size
    return new[1].value < old[1].value
