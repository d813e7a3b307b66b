"""`quantry datasets`: the texts and tasks that the laboratory works with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.api.laboratory_shapes import DatasetShape, GoneShape
from service.api.shapes import Listing
from service.cli import figures, tables
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.session import Session


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "datasets", "Laboratory")(datasets)


def datasets(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One dataset; by itself it is printed.")] = None,
    put: Annotated[Path | None, typer.Option("--put", metavar="FILE", help="Store this file under the name.")] = None,
    task: Annotated[
        bool, typer.Option("--task", help="It is a task: JSON lines with prompt or messages, and expected.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it.")] = False,
) -> None:
    """List the texts and tasks, or print, store or delete one."""
    with session.client() as client:
        if name is None:
            if put is not None or task or delete:
                raise CommandFailed(
                    "usage", "Name the dataset.", remedy="quantry datasets NAME --put FILE", exit_code=ExitCode.USAGE
                )
            _list(session, client)
        elif put is not None:
            _put(session, client, name, put, "task" if task else "text")
        elif delete:
            gone = client.delete(GoneShape, f"/v1/datasets/{ref_path(name)}")
            if session.as_json:
                session.document(gone)
            session.say(f"deleted {gone.id}")
        else:
            _print(session, client, name)


def _list(session: Session, client: Client) -> None:
    listing = client.get(Listing[DatasetShape], "/v1/datasets")
    if session.as_json:
        session.document(listing)
        return
    table = tables.columns("Name", "Kind", ">Size", "From")
    for row in listing.data:
        origin = "quantry" if row.built_in else f"{figures.moment(row.created_at)[:16]} UTC"
        table.add_row(row.name, row.kind, figures.size(row.size_bytes), origin)
    session.table(table)


def _put(session: Session, client: Client, name: str, file: Path, kind: str) -> None:
    try:
        data = file.read_bytes()
    except OSError:
        raise CommandFailed(
            "no_file", f"There is no file {str(file)!r} that can be read here.", remedy="check the path",
            exit_code=ExitCode.USAGE,
        ) from None  # fmt: skip
    answer = client.send("PUT", f"/v1/datasets/{ref_path(name)}", params={"kind": kind}, content=data)
    stored = read(DatasetShape, answer)
    if session.as_json:
        session.document(stored)
    session.say(f"{stored.name}: {stored.kind}, {figures.size(stored.size_bytes)}, {stored.digest}")


def _print(session: Session, client: Client, name: str) -> None:
    text = client.send("GET", f"/v1/datasets/{ref_path(name)}").text
    if session.as_json:
        session.document({"name": name, "text": text})
        return
    sys.stdout.write(text)
