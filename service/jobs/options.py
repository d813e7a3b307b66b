"""What jobs may use on this server: values, made from the settings by the composition root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from service.children import child_argv
from service.domain.remote import RemoteAccess


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """`threads` 0: all cores. A child silent for `stall_seconds` is killed: one tensor never takes that long.

    `concurrency` jobs run at a time, and beside them `pulls` pulls and one job that reads blobs again. While
    `is_serving` says so, jobs make way. `on_damaged` hears, from a thread, of blobs that turn out damaged.
    Pulls fetch with `access`, and take what fits `memory_bytes` where nobody says which level (0: nothing is known).
    """

    concurrency: int = 1
    pulls: int = 1
    argv: tuple[str, ...] = child_argv("service.jobs.steps")
    threads: int = 0
    niceness: int = 19
    stall_seconds: float = 3600.0
    plan_seconds: float = 120.0
    keep_ended: int = 1000  # jobs in the history
    is_serving: Callable[[], bool] = lambda: False
    access: RemoteAccess = field(default_factory=RemoteAccess)
    memory_bytes: int = 0
    on_damaged: Callable[[str], None] = lambda _digest: None
