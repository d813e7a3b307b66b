"""Which jobs wait for which: each lane runs its jobs in order, beside the other lanes. Pure.

A pull waits for the network and reading blobs again for the disk, both at the lowest priority: neither is to hold up
what computes, nor to be held up by it.
"""

from __future__ import annotations

from enum import StrEnum

from service.domain.jobs import JobKind


class Lane(StrEnum):
    """Where a job waits for its turn."""

    WORK = "work"  # computes
    PULL = "pull"  # fetches
    CARE = "care"  # reads what is stored


def lane_of(kind: JobKind) -> Lane:
    """The lane of a kind of jobs."""
    match kind:
        case JobKind.PULL:
            return Lane.PULL
        case JobKind.VERIFY:
            return Lane.CARE
        case _:
            return Lane.WORK


def kinds_in(lane: Lane) -> frozenset[JobKind]:
    """The kinds of jobs that wait in a lane."""
    return frozenset(kind for kind in JobKind if lane_of(kind) is lane)
