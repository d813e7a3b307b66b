"""`quantry jobs`: what runs and ran, one job's steps, following it, and an end to it."""

from __future__ import annotations

from typing import Annotated

import typer

from service.api.catalogue_shapes import JobShape
from service.api.shapes import Listing
from service.cli import figures, tables
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.following import ENDED, follow
from service.cli.options import command
from service.cli.progress import ending, job_view
from service.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "jobs", "Jobs")(jobs)


def jobs(
    session: Session,
    job_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="One job.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the job; what it has finished stays.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
) -> None:
    """List jobs, or show, follow or cancel one."""
    with session.client() as client:
        if cancel:
            _cancel(session, client, _required(job_id))
        elif watch:
            watch_job(session, client, _active(client, job_id))
        elif job_id is not None:
            _show(session, client.get(JobShape, f"/v1/jobs/{ref_path(job_id)}"))
        else:
            _list(session, client)


def watch_job(session: Session, client: Client, job: JobShape) -> JobShape:
    """Follow a job to its good end; a bad one is raised. Ctrl-C leaves it running and says how to cancel it."""
    now = job
    try:
        with job_view(session) as view:
            view.show(now)
            if now.status not in ENDED:
                for now in follow(client, job.id):
                    view.show(now)
    except KeyboardInterrupt:
        session.note(
            f"The job goes on in the server. Follow it: quantry jobs {job.id} --watch; "
            f"cancel it: quantry jobs {job.id} --cancel",
            style="yellow",
        )
        raise
    check_succeeded(now)
    return now


def check_succeeded(job: JobShape) -> None:
    """Raise CommandFailed for a job that ended badly."""
    if job.status == "cancelled":
        raise CommandFailed("job_cancelled", f"The job {job.id} was cancelled; what it had finished is there.")
    if job.status != "succeeded":
        code, message = (
            (job.error.code, job.error.message) if job.error else ("job_failed", f"The job {job.id} failed.")
        )
        raise CommandFailed(code, message)


def _list(session: Session, client: Client) -> None:
    listing = client.get(Listing[JobShape], "/v1/jobs")
    if session.as_json:
        session.document(listing)
    elif not listing.data:
        session.say("No jobs yet. quantry quantize MODEL LEVEL starts one.")
    else:
        session.table(tables.jobs(listing.data))


def _show(session: Session, job: JobShape) -> None:
    if session.as_json:
        session.document(job)
        return
    pairs = [
        ("job", job.id),
        ("kind", job.kind),
        ("model", job.model),
        ("created", f"{figures.moment(job.created_at)} UTC"),
    ]
    if job.started_at:
        pairs.append(("started", f"{figures.moment(job.started_at)} UTC"))
    if job.finished_at:
        pairs.append(("finished", f"{figures.moment(job.finished_at)} UTC"))
    if job.eta_seconds is not None and job.status not in ENDED:
        pairs.append(("time left", figures.duration(job.eta_seconds)))
    if job.result:
        pairs.append(("result", ", ".join(job.result)))
    session.table(tables.facts([*pairs]))
    session.say(ending(job))
    session.table(tables.steps(job))


def _cancel(session: Session, client: Client, job_id: str) -> None:
    job = read(JobShape, client.send("DELETE", f"/v1/jobs/{ref_path(job_id)}"))
    if session.as_json:
        session.document(job)
    done = ", ".join(job.result)
    session.say(
        f"Job {job.id} {'is' if job.status in ENDED else 'will soon be'} cancelled{'; kept: ' + done if done else ''}"
    )


def _active(client: Client, job_id: str | None) -> JobShape:
    """The job named, or the one that is under way."""
    if job_id is not None:
        return client.get(JobShape, f"/v1/jobs/{ref_path(job_id)}")
    found = [job for job in client.get(Listing[JobShape], "/v1/jobs").data if job.status not in ENDED]
    if not found:
        raise CommandFailed("nothing_runs", "No job is under way.", remedy="`quantry jobs` lists those that ended")
    return next((job for job in found if job.status == "running"), found[-1])


def _required(job_id: str | None) -> str:
    if job_id is None:
        raise CommandFailed(
            "usage", "--cancel needs the job's id.", remedy="quantry jobs ID --cancel; `quantry jobs` lists the ids",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    return job_id
