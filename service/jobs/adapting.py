"""Taking in a LoRA adapter, in the job's child."""

from __future__ import annotations

from service.jobs.messages import AdapterTask
from service.jobs.outbox import Outbox


def take_in(task: AdapterTask, outbox: Outbox) -> None:
    """To be built."""
    raise NotImplementedError
