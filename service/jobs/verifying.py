"""Reading blobs again, in the job's child."""

from __future__ import annotations

from service.jobs.messages import VerifyTask
from service.jobs.outbox import Outbox


def verify(task: VerifyTask, outbox: Outbox) -> None:
    """To be built."""
    raise NotImplementedError
