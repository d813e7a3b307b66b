"""The launch ladder: how a variant is loaded, from fastest to safest. Pure.

    full ──> no-extra-buffers ──> no-flash-attention ──> no-gpu ──> given up

A worker that dies by a signal before it is ready is tried again one rung lower; the rung that held is remembered for
this machine and this blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Rung(StrEnum):
    """One way to load; each gives up one more thing than the one before."""

    FULL = "full"
    NO_EXTRA_BUFFERS = "no-extra-buffers"  # no repacked weights, and no AMX kernels (docs/decisions/0001)
    NO_FLASH_ATTENTION = "no-flash-attention"
    NO_GPU = "no-gpu"


_ORDER = tuple(Rung)


@dataclass(frozen=True, slots=True)
class LaunchFlags:
    """What a rung means to llama.cpp."""

    extra_buffers: bool
    flash_attention: bool
    gpu_layers: int


def flags(rung: Rung, gpu_layers: int) -> LaunchFlags:
    """The flags of a rung; `gpu_layers` is the setting, which only the lowest rung overrides."""
    step = _ORDER.index(rung)
    return LaunchFlags(
        extra_buffers=step < _ORDER.index(Rung.NO_EXTRA_BUFFERS),
        flash_attention=step < _ORDER.index(Rung.NO_FLASH_ATTENTION),
        gpu_layers=0 if rung is Rung.NO_GPU else gpu_layers,
    )


def next_lower(rung: Rung) -> Rung | None:
    """One rung down, or None at the bottom."""
    step = _ORDER.index(rung) + 1
    return _ORDER[step] if step < len(_ORDER) else None


def parse_rung(text: str | None) -> Rung:
    """A remembered rung; the top one for none or for a word of another version."""
    return Rung(text) if text in set(_ORDER) else Rung.FULL
