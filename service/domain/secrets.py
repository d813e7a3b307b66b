"""A text that must not be shown."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    """`value` is what it is; the representation says nothing of it."""

    value: str = field(repr=False)
