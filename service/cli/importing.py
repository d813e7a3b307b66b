"""`quantry import`: a GGUF file or a checkpoint's folder into the store, by path or by sending the bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from service.api.catalogue_shapes import BlobShape, JobShape, VariantShape
from service.cli import figures
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.progress import transfer
from service.cli.session import Session

_CHUNK_BYTES = 1 << 20
# What a conversion may look at; the rest of a folder is not sent.
_CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md", "*.gguf", "*/config.json")
_PATH_REFUSED = frozenset({"invalid_parameter", "forbidden"})
_IMPORT_SECONDS = 330.0  # the server waits at most 300 before it answers with the job
_UPLOAD_SECONDS = 300.0  # for each piece, and for the answer after the last


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "import", "Models")(import_model)


def import_model(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it, e.g. gloss or gloss:instruct-F16.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A GGUF file, or the folder of a checkpoint.")],
    upload: Annotated[
        bool | None,
        typer.Option(
            "--upload/--no-upload",
            help="Send the file's bytes, or only its path. By default the path, where the server can read it.",
            show_default=False,
        ),
    ] = None,
    convert_to: Annotated[
        str | None,
        typer.Option(
            "--convert-to",
            metavar="TYPE",
            help="What a checkpoint's floats become: F16, BF16 or F32. By default F16, or BF16 for one in BF16.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Bring a GGUF file, or a checkpoint in safetensors, into the store under a name."""
    with session.client() as client:
        shown = session.silenced() if session.as_json else session
        variant = import_file(shown, client, name, path, upload=upload, convert_to=convert_to)
    if session.as_json:
        session.document(variant)
        return
    session.say(
        f"{variant.name}: {figures.size(variant.size_bytes)}, {figures.count(variant.parameters)} parameters, "
        f"{figures.bits(variant.bits_per_weight)} bits per weight"
    )
    if variant.lossy:
        session.note("This file has lost precision already: quantizing it again needs --allow-requantize.", "yellow")
    else:
        session.note(f"Next: quantry quantize {name} Q4_K_M, or quantry quantize {name} --all")


def import_file(
    session: Session,
    client: Client,
    name: str,
    path: Path,
    *,
    upload: bool | None = None,
    convert_to: str | None = None,
) -> VariantShape:
    """Import one file or folder and wait for it. Importing what is there already finds it again.

    `upload` None: by path where the server is on this machine and takes it, else by bytes.
    """
    body: dict[str, Any] = {"name": name}
    if convert_to is not None:
        body["convert_to"] = convert_to.upper()
    if upload is None and not client.is_local:
        upload = True
    if upload and path.is_dir():
        return _import(session, client, body | {"files": upload_folder(session, client, path)})
    if upload:
        return _import(session, client, body | {"digest": upload_blob(session, client, path)})
    if not path.is_absolute() and not path.exists():
        raise _no_file(path)
    try:
        return _import(session, client, body | {"path": str(path.absolute())})
    except CommandFailed as failure:
        problem = failure.problem
        if problem.code not in _PATH_REFUSED:
            raise
        if upload is None and path.exists() and problem.param in (None, "path"):
            # Another file system (a container), or a server that takes paths from some folders only.
            return import_file(session, client, name, path, upload=True, convert_to=convert_to)
        raise CommandFailed(problem.code, problem.message, remedy="add --upload to send the file's bytes") from None


def upload_folder(session: Session, client: Client, folder: Path) -> dict[str, str]:
    """Send the files of a checkpoint unless the server has them: their digests by name."""
    files = sorted({path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file()})
    if not files:
        raise _no_file(folder)
    return {path.relative_to(folder).as_posix(): upload_blob(session, client, path) for path in files}


def upload_blob(session: Session, client: Client, path: Path) -> str:
    """Send a file's bytes unless the server has them; its digest."""
    try:
        size_bytes = path.stat().st_size
        hasher = hashlib.sha256()
        with transfer(session, "hashing", size_bytes) as advance:
            for chunk in _chunks(path):
                hasher.update(chunk)
                advance(len(chunk))
    except OSError:
        raise _no_file(path) from None
    digest = f"sha256:{hasher.hexdigest()}"
    if client.send("HEAD", f"/v1/blobs/{digest}", allow=(404,)).status_code != 404:
        return digest
    with transfer(session, "sending", size_bytes) as advance:

        def counted() -> Iterator[bytes]:
            for chunk in _chunks(path):
                yield chunk
                advance(len(chunk))

        headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
        answer = client.send("PUT", f"/v1/blobs/{digest}", content=counted(), headers=headers, seconds=_UPLOAD_SECONDS)
    return read(BlobShape, answer).digest


def _import(session: Session, client: Client, body: dict[str, Any]) -> VariantShape:
    answer = client.send("POST", "/v1/models", body=body, seconds=_IMPORT_SECONDS)
    if answer.status_code != 202:
        return read(VariantShape, answer)
    job = watch_job(session, client, read(JobShape, answer))
    return client.get(VariantShape, f"/v1/variants/{ref_path(job.result[0])}")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk


def _no_file(path: Path) -> CommandFailed:
    return CommandFailed(
        "no_file",
        f"There is no file {str(path)!r} that can be read here.",
        remedy="check the path; a model is one .gguf file, or a folder with config.json and safetensors files",
        exit_code=ExitCode.USAGE,
    )
