"""`quantry importance`: the importance matrices that are stored, the figures of one, and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.api.laboratory_shapes import GoneShape, ImportanceMatrixDetailShape, ImportanceMatrixShape
from service.api.shapes import Listing
from service.cli import figures, tables
from service.cli.client import Client, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.session import Session

_MOST_SHOWN = 12
_ROUTE = "/v1/importance-matrices"


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "importance", "Laboratory")(importance)


def importance(
    session: Session,
    digest: Annotated[str | None, typer.Argument(metavar="[DIGEST]", help="One matrix; a beginning will do.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="Only this model's.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write it to a GGUF file, as llama.cpp's tools read it."),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it.")] = False,
) -> None:
    """List the importance matrices, or show, save or delete one."""
    with session.client() as client:
        if digest is None:
            if out is not None or delete:
                raise CommandFailed(
                    "usage", "Name the matrix.", remedy="`quantry importance` lists the digests",
                    exit_code=ExitCode.USAGE,
                )  # fmt: skip
            _list(session, client, model)
            return
        whole = _whole(client, digest)
        if out is not None:
            save(session, client, whole, out)
        elif delete:
            gone = client.delete(GoneShape, f"{_ROUTE}/{ref_path(whole)}")
            if session.as_json:
                session.document(gone)
            session.say(f"deleted {gone.id}")
        else:
            show(session, client, whole)


def show(session: Session, client: Client, digest: str) -> None:
    """One matrix, and the tensors that matter most by it."""
    found = client.get(ImportanceMatrixDetailShape, f"{_ROUTE}/{ref_path(digest)}")
    if session.as_json:
        session.document(found)
        return
    pairs: list[tuple[str, str | Text]] = [
        ("digest", found.digest),
        ("model", found.model),
        ("computed with", found.source or "-"),
        ("text", f"{', '.join(found.datasets) or '-'}, {found.chunks} chunks of {found.chunk_tokens} tokens"),
        ("tensors", str(found.tensors)),
        ("size", figures.size(found.size_bytes)),
    ]
    session.table(tables.facts(pairs))
    session.say()
    session.table(_statistics(found))
    if found.tensors > _MOST_SHOWN:
        session.note(f"{found.tensors - _MOST_SHOWN} more tensors: quantry importance {found.digest[:19]} --json")


def save(session: Session, client: Client, digest: str, out: Path) -> None:
    """Download the file."""
    try:
        size_bytes = client.download(f"{_ROUTE}/{ref_path(digest)}", out, {"format": "gguf"})
    except OSError:
        raise CommandFailed(
            "no_file", f"{str(out)!r} cannot be written here.", remedy="name a file in a folder of yours",
            exit_code=ExitCode.USAGE,
        ) from None  # fmt: skip
    if session.as_json:
        session.document({"digest": digest, "file": str(out), "size_bytes": size_bytes})
    session.say(f"{out}: {figures.size(size_bytes)}; llama-quantize takes it with --imatrix")


def _list(session: Session, client: Client, model: str | None) -> None:
    listing = client.get(Listing[ImportanceMatrixShape], _ROUTE, {"model": model} if model else {})
    if session.as_json:
        session.document(listing)
        return
    if not listing.data:
        session.say("No importance matrices yet. quantry calibrate MODEL computes one.")
        return
    table = tables.columns("Digest", "Model", "Text", ">Chunks", ">Tensors", "Created (UTC)")
    for row in listing.data:
        created = figures.moment(row.created_at)[5:16]
        table.add_row(
            row.digest[:19], row.model, ", ".join(row.datasets) or "-", str(row.chunks), str(row.tensors), created
        )
    session.table(table)


def _whole(client: Client, digest: str) -> str:
    """The digest that begins like this."""
    start = digest if digest.startswith("sha256:") else f"sha256:{digest}"
    rows = client.get(Listing[ImportanceMatrixShape], _ROUTE).data
    found = [row.digest for row in rows if row.digest.startswith(start)]
    if len(found) > 1:
        raise CommandFailed(
            "ambiguous", f"{len(found)} matrices begin with {digest}.", remedy="write more of the digest"
        )
    return found[0] if found else start


def _statistics(found: ImportanceMatrixDetailShape) -> Table:
    table = tables.columns("Tensor", ">Sum", ">Mean", ">Max", ">Active", ">Entropy", ">Cosine")
    rows = sorted(found.statistics, key=lambda tensor: -tensor.total)
    for tensor in rows[:_MOST_SHOWN]:
        table.add_row(
            tensor.name, f"{tensor.total:.4g}", f"{tensor.mean:.4g}", f"{tensor.maximum:.4g}",
            figures.percent(tensor.active), f"{tensor.entropy:.2f}", f"{tensor.cosine:.3f}",
        )  # fmt: skip
    return table
