"""What every command has in common: --url, --api-key, --json before or after its name, and how its failures end.

A command is a function whose first parameter is the Session; the shared options are added to its signature here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from service.cli.failures import CommandFailed, ExitCode, Problem
from service.cli.session import Session, open_session
from service.domain.errors import QuantryError

P = ParamSpec("P")

_PANEL = "Options of every command"

Url = Annotated[
    str | None,
    typer.Option("--url", help="Address of the server; QUANTRY_URL.", rich_help_panel=_PANEL, metavar="URL"),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--api-key", help="Key for the server; QUANTRY_API_KEY.", rich_help_panel=_PANEL, metavar="KEY"),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON alone: one document, or a line each.", rich_help_panel=_PANEL)
]


@dataclass(frozen=True, slots=True)
class Shared:
    """The shared options as given before the command's name."""

    url: str | None = None
    api_key: str | None = None
    as_json: bool = False


_SHARED_PARAMETERS = (
    inspect.Parameter("shared_url", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Url),
    inspect.Parameter("shared_api_key", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ApiKey),
    inspect.Parameter("shared_as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson),
)
_CONTEXT = inspect.Parameter("shared_context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def command(
    app: typer.Typer, name: str, panel: str, *, added: Mapping[str, Any] | None = None
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Register a function as the command `name`, under the heading `panel` of the help.

    `added` are further options, name to annotation, that reach the function as keyword arguments (None: not given).
    """

    def register(function: Callable[Concatenate[Session, P], None]) -> Callable[Concatenate[Session, P], None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        own = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        extra = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for option, annotation in (added or {}).items()
        ]
        keyword_only = [own_one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for own_one in own]
        parameters = [*keyword_only, *extra, *_SHARED_PARAMETERS, _CONTEXT]

        def run(**given: Any) -> None:
            context: typer.Context = given.pop("shared_context")
            before = context.obj if isinstance(context.obj, Shared) else Shared()
            after = Shared(given.pop("shared_url"), given.pop("shared_api_key"), given.pop("shared_as_json"))
            as_json = before.as_json or after.as_json
            with_failures_told(
                after.url or before.url,
                after.api_key or before.api_key,
                as_json,
                lambda session: function(session, **given),  # type: ignore[call-arg]
            )

        run.__name__ = function.__name__
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        app.command(name, rich_help_panel=panel)(run)
        return function

    return register


def with_failures_told(url: str | None, api_key: str | None, as_json: bool, body: Callable[[Session], None]) -> None:
    """Run `body`; a failure is told in one line with its remedy and becomes the exit code."""
    session = open_session("http://127.0.0.1", None, as_json)
    try:
        session = open_session(url, api_key, as_json)
        body(session)
    except CommandFailed as failure:
        session.tell(failure.problem)
        raise typer.Exit(failure.problem.exit_code) from None
    except QuantryError as error:  # from our own rooms: a bad setting, a bad level
        session.tell(Problem(error.code, error.message))
        raise typer.Exit(ExitCode.USAGE) from None
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None
