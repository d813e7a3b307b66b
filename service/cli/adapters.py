"""`quantry adapters`: LoRA adapters of a model, listed, added and deleted; and how `quantry run` names them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from service.api.adapter_shapes import AdapterShape, GoneAdapterShape
from service.api.catalogue_shapes import JobShape
from service.api.shapes import Listing
from service.cli import figures, tables
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.session import Session
from service.cli.uploading import no_file, upload_blob

_PATH_REFUSED = frozenset({"invalid_parameter", "forbidden"})
_ADD_SECONDS = 330.0  # the server waits at most 300 before it answers with the job
# What the conversion of a PEFT adapter looks at; the rest of its folder is not sent.
_PEFT_FILES = ("adapter_config.json", "adapter_model*.safetensors", "adapter_model*.json", "adapter_model*.bin")


class Verb(StrEnum):
    """What to do."""

    LIST = "list"
    ADD = "add"
    DELETE = "delete"


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "adapters", "Models")(adapters)


def adapters(
    session: Session,
    verb: Annotated[Verb, typer.Argument(metavar="[list|add|delete]", help="What to do.")] = Verb.LIST,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The model that they are for.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What the adapter is called.")] = None,
    path: Annotated[
        Path | None, typer.Argument(metavar="[PATH]", help="A GGUF adapter, or the folder of a PEFT adapter.")
    ] = None,
    upload: Annotated[
        bool | None,
        typer.Option(
            "--upload/--no-upload",
            help="Send the bytes, or only the path. By default the path, where the server can read it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the LoRA adapters of a model, add one, or delete one."""
    with session.client() as client:
        if verb is Verb.LIST:
            _list(session, client, model)
        elif model is None or name is None or (verb is Verb.ADD) != (path is not None):
            raise CommandFailed(
                "usage", "Say which adapter of which model.", exit_code=ExitCode.USAGE,
                remedy="quantry adapters add MODEL NAME PATH, or quantry adapters delete MODEL NAME",
            )  # fmt: skip
        elif path is not None:
            shown = session.silenced() if session.as_json else session
            added = _add(shown, client, {"model": model, "name": name}, path, upload)
            if session.as_json:
                session.document(added)
            session.say(f"{added.name} for {added.model}: rank {added.rank}, {figures.size(added.size_bytes)}")
            session.note(f"Next: quantry run {model} --adapter {added.name}")
        else:
            gone = client.delete(GoneAdapterShape, f"/v1/adapters/{ref_path(model)}/{ref_path(name)}")
            if session.as_json:
                session.document(gone)
            session.say(f"deleted {gone.id} of {gone.model}")


def adapter_uses(written: list[str]) -> list[dict[str, Any]]:
    """`NAME[:SCALE]`, as often as it was given, as the field of POST /v1/generate. Raises CommandFailed."""
    uses = []
    for text in written:
        name, colon, scale = text.rpartition(":")
        try:
            uses.append({"name": name, "scale": float(scale)} if colon else {"name": text})
        except ValueError:
            raise CommandFailed(
                "usage", f"{text!r} is no adapter with its scale.", exit_code=ExitCode.USAGE,
                remedy="write --adapter NAME, or --adapter NAME:0.5",
            ) from None  # fmt: skip
    return uses


def _list(session: Session, client: Client, model: str | None) -> None:
    listing = client.get(Listing[AdapterShape], "/v1/adapters", None if model is None else {"model": model})
    if session.as_json:
        session.document(listing)
        return
    table = tables.columns("Model", "Name", ">Rank", ">Size", "From", "State")
    for row in listing.data:
        state = "corrupt" if row.corrupt else ""
        moment = f"{figures.moment(row.created_at)[:16]} UTC"
        table.add_row(row.model, row.name, str(row.rank), figures.size(row.size_bytes), moment, state)
    session.table(table)


def _add(session: Session, client: Client, body: dict[str, Any], path: Path, upload: bool | None) -> AdapterShape:
    """By its path where the server is on this machine and takes it, else by its bytes."""
    if not upload and (upload is not None or client.is_local):
        if not path.is_absolute() and not path.exists():
            raise no_file(path)
        try:
            return _send(session, client, body | {"path": str(path.absolute())})
        except CommandFailed as failure:
            problem = failure.problem
            if problem.code not in _PATH_REFUSED:
                raise
            if upload is not None or not path.exists():
                raise CommandFailed(problem.code, problem.message, remedy="add --upload to send the bytes") from None
    return _send(session, client, body | _uploaded(session, client, path))


def _uploaded(session: Session, client: Client, path: Path) -> dict[str, Any]:
    if not path.is_dir():
        return {"digest": upload_blob(session, client, path)}
    found = {file for pattern in _PEFT_FILES for file in path.glob(pattern) if file.is_file()}
    if not found:
        raise no_file(path / _PEFT_FILES[0])
    return {"files": {file.name: upload_blob(session, client, file) for file in sorted(found)}}


def _send(session: Session, client: Client, body: dict[str, Any]) -> AdapterShape:
    answer = client.send("POST", "/v1/adapters", body=body, seconds=_ADD_SECONDS)
    if answer.status_code != 202:
        return read(AdapterShape, answer)
    job = watch_job(session, client, read(JobShape, answer))
    return client.get(AdapterShape, f"/v1/adapters/{ref_path(body['model'])}/{ref_path(job.result[0])}")
