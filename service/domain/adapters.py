"""LoRA adapters as requests name them: which names there are, how many at once, how much of each. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from service.domain.catalog import Adapter
from service.domain.errors import InvalidName, InvalidParameter
from service.domain.generation import AdapterUse

MAX_ADAPTERS = 16
"""Adapters of one request, and those that one worker holds."""

MAX_SCALE = 100.0

NAME_PATTERN = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_NAME = re.compile(NAME_PATTERN)


def check_name(name: str) -> str:
    """The name of an adapter. Raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(
            "The name of an adapter is 1 to 80 letters, digits, _, . and -, and starts with none of the last two.",
            param="name",
        )
    return name


def check_uses(uses: Iterable[AdapterUse]) -> None:
    """Raise InvalidParameter for more adapters than a request can have, and for scales out of bounds."""
    asked = tuple(uses)
    for use in asked:
        if not math.isfinite(use.scale) or abs(use.scale) > MAX_SCALE:
            raise InvalidParameter(
                f"The scale of an adapter is from -{MAX_SCALE:g} to {MAX_SCALE:g}.", param="adapters"
            )
    if len(asked) > MAX_ADAPTERS:
        raise InvalidParameter(f"At most {MAX_ADAPTERS} adapters are used at once; name fewer.", param="adapters")


def by_digest(
    uses: Iterable[AdapterUse], found: Mapping[str, Adapter]
) -> tuple[tuple[AdapterUse, ...], tuple[Adapter, ...]]:
    """The same in the words of a worker, which knows adapters by their bytes, and those that it needs for them: what
    was computed with a file that has been replaced since is never taken for the new one's.

    `found` has the adapters by name. Scales of one file add up; what adds up to 0 is left out.
    """
    scales: dict[str, float] = {}
    needed = {}
    for use in uses:
        adapter = needed[found[use.name].digest] = found[use.name]
        scales[adapter.digest] = scales.get(adapter.digest, 0.0) + use.scale
    uses = tuple(AdapterUse(digest, scale) for digest, scale in scales.items() if scale)
    return uses, tuple(needed[use.name] for use in uses)
