"""The cheaper guide: a few measurements of whole groups of tensors, spread over tensors and types by their errors.

Pure. The expected squared change of a matrix's outputs (`Patches.error`) says how the types of one tensor compare, and
how like tensors compare; how much the model minds such a change is measured, first for all tensors of one role, then
for halves of the groups that matter most, as long as there is time. With time enough every group is one tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# What follows from noise is kept away from the rest: a group is never free, nor worse than the steepest measured.
_LEAST_SHARE = 0.1
_POWERS = (0.6, 1.6)

Measure = Callable[[Mapping[str, str]], float]
"""Mean KL divergence with these types."""
Errors = Callable[[str, str], float]
"""Expected squared change of a tensor's outputs at a type."""


@dataclass(frozen=True, slots=True)
class Group:
    """Like tensors, in the order of their blocks, and the divergence of all of them together at their probe types."""

    tensors: tuple[str, ...]
    damage: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """Groups as fine as time allowed, and by role the power of the error that the divergence goes with."""

    groups: tuple[Group, ...]
    powers: Mapping[str, float]
    probes: Mapping[str, str]

    def losses(self, options: Mapping[str, Sequence[str]], errors: Errors) -> dict[str, dict[str, float]]:
        """Tensor -> type -> divergence, for every tensor of a group."""
        found: dict[str, dict[str, float]] = {}
        for group in self.groups:
            total = sum(errors(name, self.probes[name]) for name in group.tensors)
            for name in group.tensors:
                at_probe = errors(name, self.probes[name])
                share = group.damage * at_probe / total if total else 0.0
                power = self.powers.get(role(name), 1.0)
                found[name] = {
                    kind: share * (errors(name, kind) / at_probe) ** power if at_probe else 0.0
                    for kind in options[name]
                }
        return found


def role(name: str) -> str:
    """What tensors of all blocks have in common: the name without the number."""
    return re.sub(r"\d+", "#", name)


def block_number(name: str) -> int:
    """The number of the block a tensor belongs to; -1 outside the blocks."""
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1


def roles(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Tensors by role, each in the order of the blocks."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (block_number(name), name)):
        found.setdefault(role(name), []).append(name)
    return [tuple(group) for group in found.values()]


def estimate(
    names: Sequence[str],
    probes: Mapping[str, str],
    coarse_probes: Mapping[str, str],
    errors: Errors,
    measure: Measure,
    more: Callable[[], bool],
) -> Estimate:
    """Measure groups of `names` as long as `more` says so, all roles at least once.

    `probes` are the types that groups are measured at, `coarse_probes` smaller ones that tell the power.
    """
    groups = [Group(group, measure({name: probes[name] for name in group})) for group in roles(names)]
    powers: dict[str, float] = {}
    for group in sorted(groups, key=lambda group: -group.damage):
        coarse = {name: coarse_probes[name] for name in group.tensors if coarse_probes[name] != probes[name]}
        if len(coarse) == len(group.tensors) and more():
            powers[role(group.tensors[0])] = _power(group, probes, coarse, errors, measure(coarse))
    while more():
        wide = [group for group in groups if len(group.tensors) > 1]
        if not wide:
            break
        group = max(wide, key=lambda group: group.damage)
        groups.remove(group)
        groups += _halves(group, probes, errors, measure)
    return Estimate(tuple(groups), powers, dict(probes))


def _power(group: Group, probes: Mapping[str, str], coarse: Mapping[str, str], errors: Errors, damage: float) -> float:
    fine_error = sum(errors(name, probes[name]) for name in group.tensors)
    coarse_error = sum(errors(name, coarse[name]) for name in group.tensors)
    if min(damage, group.damage, fine_error, coarse_error) <= 0 or coarse_error <= fine_error * 1.05:
        return 1.0
    power = math.log(damage / group.damage) / math.log(coarse_error / fine_error)
    return min(max(power, _POWERS[0]), _POWERS[1])


def _halves(group: Group, probes: Mapping[str, str], errors: Errors, measure: Measure) -> list[Group]:
    """Both halves by one measurement: damages add, so the other half has what is left."""
    middle = len(group.tensors) // 2
    first, second = group.tensors[:middle], group.tensors[middle:]
    damage = measure({name: probes[name] for name in first})
    total = sum(errors(name, probes[name]) for name in group.tensors)
    share = sum(errors(name, probes[name]) for name in second) / total if total else 0.5
    return [Group(first, damage), Group(second, max(group.damage - damage, _LEAST_SHARE * share * group.damage))]
