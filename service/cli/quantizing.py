"""`quantry quantize` and `quantry plan`: levels of a stored model, made or only worked out."""

from __future__ import annotations

from typing import Annotated

import typer

from service.api.catalogue_shapes import JobShape, PlanShape
from service.api.shapes import Listing
from service.cli import tables
from service.cli.client import Client, read
from service.cli.failures import CommandFailed, ExitCode
from service.cli.jobs import watch_job
from service.cli.models import print_variants, variants
from service.cli.options import command
from service.cli.session import Session
from service.domain.quants import QUANTIZATIONS, Family, parse_label

_PANEL = "Quantization"

# The levels with published figures: Q2_K to Q8_0.
TABLE_LEVELS = tuple(
    level.label for level in reversed(QUANTIZATIONS.values()) if level.reference and level.family is not Family.FLOAT
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="What to quantize, e.g. gloss or gloss:F16.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "quantize", _PANEL)(quantize)
    command(app, "plan", _PANEL)(plan)


def quantize(
    session: Session,
    model: Model,
    levels: Annotated[
        list[str] | None, typer.Argument(metavar="LEVEL...", help="E.g. Q4_K_M Q8_0, in any case.")
    ] = None,
    all_levels: Annotated[
        bool, typer.Option("--all", help="Every level from Q2_K to Q8_0 that can be made of this model.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize a source that has lost precision already.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for the job.")] = False,
) -> None:
    """Make levels of a stored model, with a bar for each."""
    if bool(levels) == all_levels:
        raise CommandFailed(
            "usage", "Name levels, or say --all.", remedy=f"quantry quantize {model} Q4_K_M", exit_code=ExitCode.USAGE
        )
    with session.client() as client:
        wanted = makeable(client, model) if all_levels else [parse_label(level) for level in levels or ()]
        job = submit(client, model, wanted, allow_requantize=allow_requantize)
        if detach:
            if session.as_json:
                session.document(job)
            session.say(f"Job {job.id} is {job.status}. Follow it: quantry jobs {job.id} --watch")
            return
        job = watch_job(session, client, job)
        if not session.as_json:
            made = set(job.result)
            print_variants(session, [row for row in variants(client).data if row.name in made])


def plan(
    session: Session,
    model: Model,
    levels: Annotated[list[str] | None, typer.Argument(metavar="[LEVEL...]", help="Only these levels.")] = None,
) -> None:
    """Work out what levels of a model would be, to the byte, and make nothing."""
    wanted = [parse_label(level) for level in levels] if levels else list(TABLE_LEVELS)
    with session.client() as client:
        listing = plans(client, model, wanted)
    if session.as_json:
        session.document(listing)
        return
    session.say(f"{listing.data[0].source} would become:")
    session.table(tables.plans(listing.data))
    session.note("* recommended")
    session.note(tables.REFERENCE_NOTE)
    if not all(row.fits for row in listing.data if not row.error):
        session.note("! does not fit the server's memory budget.")


def makeable(client: Client, model: str) -> list[str]:
    """The levels of the table that llama.cpp can make of the model."""
    return [
        row.quantization
        for row in plans(client, model, list(TABLE_LEVELS)).data
        if not row.error and not row.needs_imatrix
    ]


def plans(client: Client, source: str, levels: list[str]) -> Listing[PlanShape]:
    """A dry run."""
    return client.post(Listing[PlanShape], "/v1/quantize", {"model": source, "to": levels, "dry_run": True})


def submit(client: Client, source: str, levels: list[str], *, allow_requantize: bool = False) -> JobShape:
    """Ask for the levels; the job that makes them."""
    body = {"model": source, "to": levels, "allow_requantize": allow_requantize}
    return read(JobShape, client.send("POST", "/v1/quantize", body=body))
