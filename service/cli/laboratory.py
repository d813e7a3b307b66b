"""`quantry calibrate`, `evaluate` and `rebuild`: importance matrices, measurements, and proof of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from service.api.catalogue_shapes import JobShape
from service.cli import importance, measuring
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.quantizing import finish
from service.cli.session import Session
from service.cli.uploading import upload_blob

_PANEL = "Laboratory"

Threads = Annotated[int | None, typer.Option("--threads", min=1, max=1024, help="Threads to compute with.")]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "calibrate", _PANEL)(calibrate)
    command(app, "evaluate", _PANEL, added=measuring.OPTIONS)(evaluate)
    command(app, "rebuild", _PANEL)(rebuild)


def calibrate(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bare name means the variant that lost least.")],
    text: Annotated[
        str | None, typer.Option("--text", metavar="NAME", help="Dataset to compute on, or none.", show_default=False)
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option("--include", metavar="FILE|DIGEST", help="A matrix to check and merge; may be given again."),
    ] = None,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Windows to read; by default all.")] = None,
    window: Annotated[int | None, typer.Option("--window", min=64, max=16384, help="Tokens of a window.")] = None,
    process_output: Annotated[bool, typer.Option("--process-output", help="For output.weight as well.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the matrix to a GGUF file as well.")
    ] = None,
    threads: Threads = None,
    detach: Detach = False,
) -> None:
    """Compute an importance matrix of a model, bring one in, or merge several."""
    if detach and out is not None:
        raise CommandFailed(
            "usage", "--out needs the matrix, and --detach does not wait for it.", remedy="leave one of them out",
            exit_code=ExitCode.USAGE,
        )  # fmt: skip
    given = {"chunks": chunks, "window": window, "threads": threads}
    body: dict[str, Any] = {"model": model} | {name: value for name, value in given.items() if value is not None}
    if text is not None:
        body["dataset"] = None if text == "none" else text
    if process_output:
        body["process_output"] = True
    with session.client() as client:
        if include:
            quiet = session.silenced() if session.as_json else session
            body["include"] = [_digest(quiet, client, one) for one in include]
        job = read(JobShape, client.send("POST", "/v1/calibrate", body=body))
        if detach:
            finish(session, client, job, detach=True)
            return
        job = watch_job(session, client, job)
        for digest in job.result:
            if not session.as_json:
                importance.show(session, client, digest)
            if out is not None:
                importance.save(session, client, digest, out)


def evaluate(
    session: Session,
    /,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Variants of one model; a bare name means all of them.")
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="NAME", help="What to hold them to; by default what they were made from."),
    ] = None,
    threads: Threads = None,
    detach: Detach = False,
    **options: Any,
) -> None:
    """Measure what variants lost against their source, how fast they are here, and how well they do tasks."""
    body: dict[str, Any] = {"model": names[0] if len(names) == 1 else names, **measuring.fields(options)}
    body |= {name: value for name, value in {"base": base, "threads": threads}.items() if value is not None}
    with session.client() as client:
        finish(session, client, read(JobShape, client.send("POST", "/v1/evaluate", body=body)), detach=detach)


def rebuild(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A variant that was made here.")],
    threads: Threads = None,
    detach: Detach = False,
) -> None:
    """Make a variant again from its recipe and compare it, byte for byte; a damaged file is mended by it."""
    body = {} if threads is None else {"threads": threads}
    with session.client() as client:
        job = read(JobShape, client.send("POST", f"/v1/variants/{ref_path(name)}/rebuild", body=body))
        if detach:
            finish(session, client, job, detach=True)
            return
        job = watch_job(session, client, job)
    session.say(f"{', '.join(job.result) or job.model} came out the same, byte for byte.")


def _digest(session: Session, client: Client, what: str) -> str:
    """A digest as it is; a file is sent to the server first."""
    return what if what.startswith("sha256:") else upload_blob(session, client, Path(what))
