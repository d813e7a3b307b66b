"""Taking a bundle apart, in the job's child."""

from __future__ import annotations

from service.jobs.messages import BundleTask
from service.jobs.outbox import Outbox


def unpack(task: BundleTask, outbox: Outbox) -> None:
    """To be built."""
    raise NotImplementedError
