"""The mix of tensor types that loses least within a budget: solve, look at the mix as a whole, solve again.

Child processes. What tensors cost is found by losses.py; the knapsack (knapsack.py) chooses; the chosen mix is then
measured, and again with the tensors of each role put back, to see what they cost in its company. That corrects the
losses for a second choice. Only a mix that measures better replaces one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from service.domain.errors import InvalidParameter
from service.domain.evaluation import Estimate, SearchReport, Target
from service.quantization import guide
from service.quantization.choices import Choices
from service.quantization.knapsack import Choice, Mix, fastest, least_loss, least_size
from service.quantization.losses import Losses, Meter

Seconds = Mapping[str, Mapping[str, float]]
"""Tensor -> type -> its part of the seconds a token takes."""
_LOOKS = 2
_FEWEST_MEASUREMENTS = 3  # that a look is worth beginning for
_FACTORS = (0.2, 5.0)  # what one look may correct a loss by
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
    """Chooses mixes by what a meter has learned."""

    def __init__(self, meter: Meter, choices: Choices, losses: Losses, *, seconds: Seconds | None) -> None:
        """`losses` are what `meter` learned. `seconds` None: speed does not matter."""
        self._meter = meter
        self._choices = choices
        self._losses = losses
        self._seconds = seconds

    def choose(self, target: Budget) -> Found:
        """The mix for a target, once or for several. Raises InvalidParameter when it cannot be kept."""
        best, joint = self._improve(target, self._losses)
        types = self._types(best)
        measured, estimated = self._meter.pairs()
        return Found(
            types=types,
            size_bytes=self._choices.file_bytes(types),
            kld=joint,
            measured_pairs=measured,
            estimated_pairs=estimated,
            guide=self._meter.guide,
            seconds=self._meter.seconds(),
            rest=self._choices.rest,
        )

    def _improve(self, target: Budget, losses: Losses) -> tuple[Mix, Estimate]:
        """Solve; look at what the roles cost in the company of that mix; solve again, as long as it gets better."""
        best, joint = self._solve(target, losses)
        for number in range(_LOOKS):
            if not self._meter.has_time_for(_FEWEST_MEASUREMENTS):
                break
            losses = self._by_role(losses, best, joint, number)
            mix, found = self._solve(target, losses)
            if not _better(target, (mix, found), (best, joint)):
                break
            best, joint = mix, found
        return best, joint

    def _by_role(self, losses: Losses, mix: Mix, joint: Estimate, number: int) -> Losses:
        """The losses, those of each role times what it costs in the mix over what it was believed to cost."""
        types = self._types(mix)
        groups = guide.roles(self._meter.names)
        factors: dict[str, float] = {}
        for position, group in enumerate(groups):
            believed = sum(losses[name][types[name]] for name in group)
            if believed <= 0 or not self._meter.has_time_for(2):
                continue
            without = {name: kind for name, kind in types.items() if name not in group}
            factors |= dict.fromkeys(group, _factor(joint.value - self._meter.measure(without).value, believed))
            share = (number + (position + 1) / len(groups)) / _LOOKS
            self._meter.tell_looking(share, f"look {number + 1}, role {position + 1} of {len(groups)}")
        return {
            name: {kind: loss * factors.get(name, 1.0) for kind, loss in found.items()}
            for name, found in losses.items()
        }

    def _solve(self, target: Budget, losses: Losses) -> tuple[Mix, Estimate]:
        """The best mix by these losses, and what it costs measured as a whole."""
        items = self._items(losses)
        if target.kld is None:
            mix = least_loss(items, self._room(target), target.seconds)
            if mix is None:
                raise self._too_slow(items, target)
            return mix, self._meter.measure(self._types(mix))
        return self._solve_quality(target, items, target.kld)

    def _solve_quality(self, target: Budget, items: list[list[Choice]], limit: float) -> tuple[Mix, Estimate]:
        """The smallest mix whose measured divergence keeps the limit: the believed one is moved until it does."""
        believed = limit
        best: tuple[Mix, Estimate] | None = None
        for _ in range(_QUALITY_STEPS):
            mix = least_size(items, believed, target.seconds)
            if mix is None:
                break
            found = self._meter.measure(self._types(mix))
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
            found = self._meter.measure(self._types(mix))
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
            for name in self._meter.names
        ]

    def _types(self, mix: Mix) -> dict[str, str]:
        kinds = [list(self._choices.options[name]) for name in self._meter.names]
        return {name: kinds[pick] for name, kinds, pick in zip(self._meter.names, kinds, mix.picks, strict=True)}


def _factor(counted: float, believed: float) -> float:
    return min(max(counted / believed, _FACTORS[0]), _FACTORS[1])


def _better(target: Budget, new: tuple[Mix, Estimate], old: tuple[Mix, Estimate]) -> bool:
    if target.kld is not None:
        return new[0].size < old[0].size
    return new[1].value < old[1].value
