"""The steps of a pull, in the job's child."""

from __future__ import annotations

from service.jobs.messages import PullTask
from service.jobs.outbox import Outbox


def pull(task: PullTask, outbox: Outbox) -> None:
    """To be built."""
    raise NotImplementedError
