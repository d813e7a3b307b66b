"""`quantry adopt`: the models that another program keeps on this disk, served from where they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.api.catalogue_shapes import JobShape, VariantShape
from service.cli import figures, tables
from service.cli.client import Client, read
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.model_folders import FoundModel, find_models
from service.cli.options import command
from service.cli.session import Session

_IMPORT_SECONDS = 330.0  # the server waits at most 300 before it answers with the job
_WAYS = ("reference", "link", "copy")


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "adopt", "Models")(adopt)


def adopt(
    session: Session,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder with .gguf files, or Ollama's (~/.ollama/models).")
    ],
    way: Annotated[
        str,
        typer.Option(
            "--as", metavar="WAY", help="reference: leave the files where they are; link: hard links; copy: copies."
        ),
    ] = "reference",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without, only say what would be done.")] = False,
) -> None:
    """Serve the models that another program keeps on this disk; its files are never written to."""
    if way not in _WAYS:
        raise CommandFailed(
            "usage", f"{way!r} is no way to adopt.", remedy=f"--as {' | '.join(_WAYS)}", exit_code=ExitCode.USAGE
        )
    try:
        found = find_models(folder.expanduser())
    except OSError as error:
        raise CommandFailed("no_folder", f"{folder} cannot be read: {error.strerror}.") from None
    if not yes:
        _show(session, found)
        return
    with session.client() as client:
        if not client.is_local:
            raise CommandFailed("not_local", "Files are adopted by a server on this machine.", remedy="quantry import")
        results = [_adopt_one(session, client, model, way) for model in found]
    if session.as_json:
        session.document({"object": "list", "data": results})
    failed = sum("error" in result for result in results)
    session.note(f"{len(results) - failed} of {len(results)} files adopted")
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def _show(session: Session, found: list[FoundModel]) -> None:
    if session.as_json:
        rows = [{"name": one.name, "path": str(one.path), "size_bytes": one.size_bytes} for one in found]
        session.document({"object": "list", "data": rows})
        return
    if not found:
        session.say("There are no GGUF models in this folder.")
        return
    table = tables.columns("Name", ">Size", "~File")
    for model in found:
        table.add_row(model.name, figures.size(model.size_bytes), str(model.path))
    session.table(table)
    session.note(f"{len(found)} files; nothing was done. Adopt them: the same command with --yes")


def _adopt_one(session: Session, client: Client, model: FoundModel, way: str) -> dict[str, object]:
    # Pieces become one file, which can only be a new one.
    body = {"name": model.name, "path": str(model.path), "adopt": way if model.whole else "copy"}
    try:
        answer = client.send("POST", "/v1/models", body=body, seconds=_IMPORT_SECONDS)
        if answer.status_code == 202:
            job = watch_job(session.silenced() if session.as_json else session, client, read(JobShape, answer))
            name = job.result[0]
        else:
            name = read(VariantShape, answer).name
    except CommandFailed as failure:
        session.note(f"{model.path.name}: {failure.problem.message}", style="yellow")
        return {"path": str(model.path), "error": {"code": failure.problem.code, "message": failure.problem.message}}
    session.say(f"{name}: {model.path}")
    return {"path": str(model.path), "name": name}
