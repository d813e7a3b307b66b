"""The `quantry` command put together: its groups of commands in the order of the help."""

from __future__ import annotations

import typer

from service.cli import (
    adapters,
    adopting,
    advice,
    care,
    chat,
    datasets,
    demo,
    desired,
    doctor,
    exporting,
    importance,
    importing,
    jobs,
    laboratory,
    models,
    pulling,
    quantizing,
    serving,
    workers,
)
from service.cli.options import ApiKey, AsJson, Shared, Url

_EPILOG = (
    "Exit codes: 0 done, 1 refused or failed, 2 wrong command line or setting, 3 no server answers, 130 interrupted."
)

_TOPICS = (
    demo,
    serving,
    chat,
    workers,
    importing,
    adopting,
    pulling,
    exporting,
    models,
    adapters,
    care,
    quantizing,
    desired,
    laboratory,
    advice,
    importance,
    datasets,
    jobs,
    doctor,
)


def build() -> typer.Typer:
    """The whole command."""
    app = typer.Typer(
        name="quantry",
        help="Quantize GGUF language models, see what each level costs, and serve any of them.",
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(shared)
    for topic in _TOPICS:
        topic.register(app)
    return app


def shared(context: typer.Context, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Quantize GGUF language models, see what each level costs, and serve any of them."""
    context.obj = Shared(url, api_key, as_json)


def main() -> None:
    """Run the command; never returns."""
    build()(prog_name="quantry")
