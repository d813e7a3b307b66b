"""Following a job to its end over a connection that may break: each new one resumes after the last event seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from service.api.catalogue_shapes import JobShape
from service.cli.client import Client, ConnectionLost, parse
from service.cli.failures import CommandFailed, ExitCode

ENDED = frozenset({"succeeded", "failed", "cancelled"})
GIVE_UP_SECONDS = 120.0
_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0


def follow(client: Client, job_id: str, pause: Callable[[float], None] = time.sleep) -> Iterator[JobShape]:
    """The job each time it has changed, the last one ended.

    A lost connection or a restarting server is waited for, two minutes long; then CommandFailed says how to go on.
    """
    last_id: str | None = None
    waited, delay = 0.0, _FIRST_PAUSE_SECONDS
    while True:
        try:
            for event_id, job in _events(client, job_id, last_id):
                waited, delay = 0.0, _FIRST_PAUSE_SECONDS
                last_id = event_id or last_id
                yield job
                if job.status in ENDED:
                    return
            job = client.get(JobShape, f"/v1/jobs/{job_id}")
            if job.status in ENDED:
                yield job
                return
        except ConnectionLost:
            pass
        except CommandFailed as failure:
            if failure.problem.exit_code is not ExitCode.UNREACHABLE and failure.problem.code != "shutting_down":
                raise
        if waited >= GIVE_UP_SECONDS:
            raise CommandFailed(
                "unreachable",
                f"The server has not answered for {waited:.0f} s; it goes on with the job once it is back.",
                remedy=f"follow it then with: quantry jobs {job_id} --watch",
                exit_code=ExitCode.UNREACHABLE,
            )
        pause(delay)
        waited += delay
        delay = min(delay * 2, _LONGEST_PAUSE_SECONDS)


def _events(client: Client, job_id: str, last_id: str | None) -> Iterator[tuple[str | None, JobShape]]:
    headers = {"Last-Event-ID": last_id} if last_id is not None else {}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream:
        for event in stream:
            yield event.id, parse(JobShape, event)
