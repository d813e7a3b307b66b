"""`quantry import`: a GGUF file or a checkpoint's folder into the store, by path or by sending the bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from service.api.catalogue_shapes import JobShape, VariantShape
from service.cli import figures
from service.cli.client import Client, read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.options import command
from service.cli.session import Session
from service.cli.uploading import no_file, upload_blob
from service.gguf.checkpoint_files import PICKLE_REMEDY, PICKLES

T = TypeVar("T")

# What a conversion may look at; the rest of a folder is not sent.
_CHECKPOINT_FILES = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "README.md",
    "*.gguf",
    "*/config.json",
    "additional_chat_templates/*.jinja",
)
_MODEL_FILES = (".safetensors", ".gguf")
_FLOATS = ("F16", "BF16", "F32")
_PATH_REFUSED = frozenset({"invalid_parameter", "forbidden"})
_IMPORT_SECONDS = 330.0  # the server waits at most 300 before it answers with the job


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "import", "Models")(import_model)


def import_model(
    session: Session,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="What to call it, e.g. gloss or gloss:instruct-F16.")
    ] = None,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A GGUF file, the folder of a checkpoint, or a bundle.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="A bundle; its model keeps its name unless NAME is given."),
    ] = None,
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
    """Bring a model into the store: a GGUF file or a checkpoint under a name, or a bundle with all its variants."""
    if bundle is None and path is not None and is_bundle(path):
        bundle, path = path, None
    shown = session.silenced() if session.as_json else session
    if bundle is not None and path is None:
        with session.client() as client:
            job = import_bundle(shown, client, bundle, name, upload=upload)
        if session.as_json:
            session.document(job)
        session.say(f"{len(job.result)} variants: {', '.join(job.result)}")
        return
    if name is None or path is None or bundle is not None:
        raise CommandFailed(
            "usage", "Give a name and a file, or a bundle.", exit_code=ExitCode.USAGE,
            remedy="quantry import NAME PATH, or quantry import --bundle FILE",
        )  # fmt: skip
    with session.client() as client:
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
    """Import a file or a checkpoint's folder and wait for it. Importing what is there already finds it again.

    `upload` None: by path where the server is on this machine and takes it, else by bytes.
    """
    body = {"name": name}
    if convert_to is not None:
        if convert_to.upper() not in _FLOATS:
            raise CommandFailed(
                "invalid_parameter",
                f"A checkpoint cannot be converted to {convert_to!r}.",
                remedy=f"give --convert-to one of {', '.join(_FLOATS)}",
                exit_code=ExitCode.USAGE,
            )
        body["convert_to"] = convert_to.upper()
    return _bring(session, client, path, upload, lambda source: _import(session, client, {**body, **source}))


def import_bundle(
    session: Session, client: Client, path: Path, name: str | None, *, upload: bool | None = None
) -> JobShape:
    """Take in a bundle and wait for it; the job. `upload` as above."""

    def take_in(source: dict[str, Any]) -> JobShape:
        body = source if name is None else {"name": name, **source}
        return watch_job(session, client, client.post(JobShape, "/v1/bundles", body))

    return _bring(session, client, path, upload, take_in)


def is_bundle(path: Path) -> bool:
    """Whether a file is a tar archive: by its content where it can be read here, else by its name."""
    try:
        with path.open("rb") as file:
            return file.read(262)[257:] == b"ustar"
    except OSError:
        return path.suffix == ".tar"


def _bring(session: Session, client: Client, path: Path, upload: bool | None, send: Callable[[dict[str, Any]], T]) -> T:
    """What `send` makes of a path, or of the digest of its bytes once they are sent; of those of a folder's files."""
    if upload is None and not client.is_local:
        upload = True
    if upload and path.is_dir():
        return send({"files": _upload_folder(session, client, path)})
    if upload:
        return send({"digest": upload_blob(session, client, path)})
    if not path.is_absolute() and not path.exists():
        raise no_file(path)
    try:
        return send({"path": str(path.absolute())})
    except CommandFailed as failure:
        problem = failure.problem
        if problem.code not in _PATH_REFUSED:
            raise
        if upload is None and path.exists():
            # Another file system (a container), or a server that takes paths from some folders only.
            return _bring(session, client, path, True, send)
        if not path.exists():
            raise CommandFailed(
                problem.code, problem.message, remedy=f"check the path; {str(path)!r} is not on this machine either"
            ) from None
        raise CommandFailed(problem.code, problem.message, remedy="add --upload to send the file's bytes") from None


def _upload_folder(session: Session, client: Client, folder: Path) -> dict[str, str]:
    """Send the files of a checkpoint unless the server has them: their digests by name."""
    files = sorted({path for pattern in _CHECKPOINT_FILES for path in folder.glob(pattern) if path.is_file()})
    if not any(path.suffix in _MODEL_FILES for path in files):
        raise _no_model(folder)
    return {path.relative_to(folder).as_posix(): upload_blob(session, client, path) for path in files}


def _no_model(folder: Path) -> CommandFailed:
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    message = "it has neither a .gguf file nor safetensors files with their config.json."
    if any(name.endswith(PICKLES) for name in there):
        message = f"it has no safetensors files. {PICKLE_REMEDY}"
    return CommandFailed("invalid_model", f"There is no model in {str(folder)!r}: {message}")


def _import(session: Session, client: Client, body: dict[str, Any]) -> VariantShape:
    answer = client.send("POST", "/v1/models", body=body, seconds=_IMPORT_SECONDS)
    if answer.status_code != 202:
        return read(VariantShape, answer)
    job = watch_job(session, client, read(JobShape, answer))
    return client.get(VariantShape, f"/v1/variants/{ref_path(job.result[0])}")
