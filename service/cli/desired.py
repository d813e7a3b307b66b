"""`quantry desired`: the levels of a model that the server is to keep."""

from __future__ import annotations

from typing import Annotated

import typer

from service.api.desired_shapes import DesiredShape
from service.cli import tables
from service.cli.client import read, ref_path
from service.cli.failures import CommandFailed, ExitCode
from service.cli.options import command
from service.cli.session import Session
from service.domain.desired import AUTO


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "desired", "Models")(desired)


def desired(
    session: Session,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model, without a tag.")],
    levels: Annotated[
        list[str] | None, typer.Argument(metavar="[LEVEL]...", help="The levels wanted; none: show what is.")
    ] = None,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="DIGEST", help="Make them with this importance matrix; auto computes one."),
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Also of a source that has lost precision already.")
    ] = False,
    nothing: Annotated[bool, typer.Option("--nothing", help="Want no levels any more; what is there stays.")] = False,
) -> None:
    """Say which levels of a model are wanted, or show how far that has come. The server makes what is missing."""
    wanted = levels or []
    if (nothing and wanted) or ((imatrix or allow_requantize) and not wanted):
        raise CommandFailed(
            "usage",
            "Options go with levels, and --nothing with none.",
            remedy=f"quantry desired {model} Q4_K_M Q8_0 --imatrix {AUTO}",
            exit_code=ExitCode.USAGE,
        )
    path = f"/v1/models/{ref_path(model)}/desired"
    with session.client() as client:
        if nothing:
            shape = client.delete(DesiredShape, path)
        elif wanted:
            body = {"levels": wanted, "importance_matrix": imatrix, "allow_requantize": allow_requantize}
            shape = read(DesiredShape, client.send("PUT", path, body=body))
        else:
            shape = client.get(DesiredShape, path)
    if session.as_json:
        session.document(shape)
        return
    table = tables.columns("Level", "State", "Job", "~Why")
    for level in shape.levels:
        table.add_row(level.quantization, level.state, level.job or "", level.reason or "")
    session.table(table)
    if nothing:
        session.say(f"nothing is wanted of {shape.model} any more")
