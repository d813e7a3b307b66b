"""`quantry serve` and `stop-server`: the server's own life from the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import background
from service.cli.failures import CommandFailed
from service.cli.options import command
from service.cli.session import Session
from service.domain.errors import Conflict
from service.settings import Settings, load_settings
from service.startup import lasting

_PANEL = "Serving"
_STOP_MARGIN_SECONDS = 30.0  # beside the time that running streams get

# A key on a command line can be read by every user of the machine.
_ENVIRONMENT_ONLY = frozenset({"api_keys", "hub_token"})


def register(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "serve", _PANEL, added=setting_options())(serve)
    command(app, "stop-server", _PANEL)(stop_server)


def setting_options() -> dict[str, Any]:
    """One option for each setting, its text checked by the settings themselves."""
    return {
        name: Annotated[
            str | None,
            typer.Option(
                f"--{name.replace('_', '-')}",
                help=f"{field.description} QUANTRY_{name.upper()}.",
                metavar="VALUE",
                rich_help_panel="Settings",
            ),
        ]
        for name, field in Settings.model_fields.items()
        if name not in _ENVIRONMENT_ONLY
    }


def serve(session: Session, /, **overrides: str | None) -> None:
    """Start the server and keep it until Ctrl-C. Options override the QUANTRY_ variables."""
    settings = load_settings(**overrides)
    if os.environ.get("QUANTRY_API_KEY") and not settings.api_keys:
        session.note(
            "QUANTRY_API_KEY is what clients send; this server asks for no key. QUANTRY_API_KEYS sets those it knows.",
            style="yellow",
        )
    with lasting():
        from service.app import serve as serve_until_stopped  # the whole server: no other command waits for its imports

    background.check_home(settings.home)
    background.check_port(settings)
    try:
        status = serve_until_stopped(settings)
    except Conflict as error:
        found = background.live_server(settings.home)
        remedy = f"quantry stop-server stops it: process {found.pid} at {found.url}" if found else None
        raise CommandFailed(error.code, error.message, remedy=remedy) from None
    raise typer.Exit(status)


def stop_server(
    session: Session,
    home: Annotated[Path | None, typer.Option(help="Home of the server to stop; QUANTRY_HOME.")] = None,
) -> None:
    """Stop the server that works on this home. Running answers end first; jobs go on at the next start."""
    settings = load_settings(home=home)
    found = background.live_server(settings.home)
    if found is None:
        background.forget(settings.home)
        session.say("No server runs on this home.")
        if session.as_json:
            session.document({"stopped": False, "pid": None})
        return
    seconds = settings.drain_seconds + _STOP_MARGIN_SECONDS
    if not background.end(found.pid, seconds):
        raise CommandFailed(
            "not_stopped",
            f"The server (process {found.pid}) still runs after {seconds:.0f} s.",
            remedy=f"kill -9 {found.pid}: no data is lost, running answers are",
        )
    if session.as_json:
        session.document({"stopped": True, "pid": found.pid})
    session.say(f"The server at {found.url} (process {found.pid}) has stopped.")
