"""`quantry pull` and `quantry remote`: models from elsewhere, fetched or only looked at."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from service.api.catalogue_shapes import JobShape, VariantShape
from service.api.remote_shapes import RemoteShape
from service.cli import figures, tables
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.session import Session

_PANEL = "Models"
_PULL_SECONDS = 330.0  # the server waits at most 300 before it answers with the job

Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS",
        help="hf.co/OWNER/REPO[:LEVEL][@REVISION], https://HOST/FILE.gguf, or [HOST/][NAMESPACE/]MODEL[:TAG].",
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "pull", _PANEL)(pull)
    command(app, "remote", _PANEL)(remote)


def pull(
    session: Session,
    address: Address,
    name: Annotated[
        str | None, typer.Option("--name", help="What to call it here; by default what the address says.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
) -> None:
    """Fetch a model from the hub, a registry or a file's address. What came before does not come again."""
    with session.client() as client:
        body: dict[str, Any] = {"from": address, **({"name": name} if name else {})}
        answer = client.send(
            "POST", "/v1/models", body=body, seconds=_PULL_SECONDS, headers={"Prefer": "respond-async"}
        )
        if answer.status_code == 202:
            job = read(JobShape, answer)
            if detach:
                if session.as_json:
                    session.document(job)
                session.say(f"Job {job.id} is {job.status}. Follow it: quantry jobs {job.id} --watch")
                return
            shown = session.silenced() if session.as_json else session
            variant = _made(client, watch_job(shown, client, job))
        else:
            variant = read(VariantShape, answer)
    if session.as_json:
        session.document(variant)
        return
    session.say(
        f"{variant.name}: {figures.size(variant.size_bytes)}, {figures.count(variant.parameters)} parameters, "
        f"{figures.bits(variant.bits_per_weight)} bits per weight"
    )
    session.note(f"Next: quantry run {variant.name}")


def remote(session: Session, address: Address) -> None:
    """Show which levels of a model can be pulled, with their sizes. Nothing is fetched."""
    with session.client() as client:
        try:
            seen = client.get(RemoteShape, f"/v1/remote/{ref_path(address)}")
        except CommandFailed as failure:
            if failure.problem.code != "model_not_found":
                raise
            # The remedy of other commands, `quantry list`, shows what is here; the message says what is there.
            raise CommandFailed(failure.problem.code, failure.problem.message) from None
    if session.as_json:
        session.document(seen)
        return
    session.say(f"{seen.address}" + (f" at {seen.revision[:19]}" if seen.revision else ""))
    session.table(tables.remote(seen))
    session.note("* what the address means")
    if any(level.converts for level in seen.levels):
        session.note("A checkpoint is converted here once it has come.")
    if not all(level.fits for level in seen.levels):
        session.note("! does not fit the server's memory budget.")
    if not all(level.fits_disk for level in seen.levels):
        session.note("The disk has no room for every one of these.", "yellow")
    session.note(f"Next: quantry pull {seen.levels[0].address if len(seen.levels) == 1 else 'ADDRESS'}")


def _made(client: Client, job: JobShape) -> VariantShape:
    return client.get(VariantShape, f"/v1/variants/{ref_path(job.result[0])}")
