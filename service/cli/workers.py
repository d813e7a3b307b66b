"""`quantry ps` and `quantry stop`: what is in memory, and out of it again."""

from __future__ import annotations

import typer

from service.api.catalogue_shapes import UnloadedShape, WorkerListing
from service.cli import tables
from service.cli.client import LONG_SECONDS, ref_path
from service.cli.models import Name
from service.cli.options import command
from service.cli.session import Session

_PANEL = "Serving"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "ps", _PANEL)(list_workers)
    command(app, "stop", _PANEL)(stop)


def list_workers(session: Session) -> None:
    """List the worker processes: model, state, memory, requests."""
    with session.client() as client:
        listing = client.get(WorkerListing, "/v1/workers")
    if session.as_json:
        session.document(listing)
        return
    if not listing.data:
        session.say("Nothing is loaded. quantry run NAME loads a model.")
        return
    session.table(tables.workers(listing.data))
    for worker in listing.data:
        if worker.last_error:
            session.say(f"{worker.name}: {worker.last_error}")


def stop(session: Session, name: Name) -> None:
    """Take a model out of memory once its running answers have ended. (The server: quantry stop-server.)"""
    with session.client() as client:
        gone = client.post(UnloadedShape, f"/v1/workers/{ref_path(name)}/unload", seconds=LONG_SECONDS)
    if session.as_json:
        session.document(gone)
    session.say(f"{gone.name} is not in memory")
