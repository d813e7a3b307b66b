"""`quantry run`: one answer for a prompt or for what is piped in, or a chat in the terminal."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli import tables
from service.cli.adapters import adapter_uses
from service.cli.answers import Answer, generate, pace, write_text
from service.cli.client import Client
from service.cli.conversation import HELP, Conversation, Line, Verb, read_line
from service.cli.events import ServerEvent
from service.cli.failures import CommandFailed, ExitCode
from service.cli.models import Name
from service.cli.options import command
from service.cli.session import Session

_PANEL = "Answer"
_FENCE = '"""'


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "run", "Serving")(run)


def run(
    session: Session,
    name: Name,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="Without it: a chat, or what is piped in.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told first.", rich_help_panel=_PANEL)] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.", rich_help_panel=_PANEL)
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=5, help="0 is greedy.", rich_help_panel=_PANEL)
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0, max=1, rich_help_panel=_PANEL)] = None,
    top_k: Annotated[int | None, typer.Option(min=0, rich_help_panel=_PANEL)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, rich_help_panel=_PANEL)] = None,
    seed: Annotated[int | None, typer.Option(min=-1, rich_help_panel=_PANEL)] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given again.", rich_help_panel=_PANEL)
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="json|FILE",
            help="Answer in JSON, or in JSON that fits the schema in a file.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="A smaller variant that guesses ahead.", rich_help_panel=_PANEL)
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SCALE]", help="A LoRA adapter of the model; may be given again.", rich_help_panel=_PANEL
        ),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of context to ask for.", rich_help_panel=_PANEL)
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say how fast it was.", rich_help_panel=_PANEL)
    ] = False,
) -> None:
    """Ask a model: one answer for a PROMPT or for piped text, else a chat in the terminal."""
    knobs: dict[str, Any] = {
        "temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens, "seed": seed,
        "context_length": context_length,
    }  # fmt: skip
    conversation = Conversation(
        model=name,
        system=system,
        raw=raw,
        knobs={knob: value for knob, value in knobs.items() if value is not None},
        stop=stop or [],
        format=None if format_ is None else wanted_format(format_),
        draft=draft,
        adapters=adapter_uses(adapter or []),
    )
    text = "\n\n".join(part for part in (prompt, piped_text()) if part)
    with session.client() as client:
        if text:
            _answer_once(session, client, conversation, text, verbose=verbose)
        elif sys.stdin.isatty() and not session.as_json:
            _Chat(session, client, conversation, verbose=verbose).run()
        else:
            raise CommandFailed(
                "usage",
                "There is nothing to ask.",
                remedy=f'quantry run {name} "a question", or pipe text in',
                exit_code=ExitCode.USAGE,
            )


def wanted_format(text: str) -> str | dict[str, Any]:
    """What --format asks for: "json", or the JSON schema in a file. CommandFailed where there is none."""
    if text == "json":
        return text
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    raise CommandFailed(
        "usage",
        f"{text} is no file with a JSON schema.",
        remedy="name a file that holds one JSON object, or write --format json",
        exit_code=ExitCode.USAGE,
    )


def piped_text() -> str:
    """What is piped into standard input; empty on a terminal and for /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        # No file descriptor: a test, or a program that embeds this; closed standard input reads as nothing.
        return "" if sys.stdin is None or sys.stdin.closed else sys.stdin.read().strip()
    if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode):
        return sys.stdin.read().strip()
    return ""


def _answer_once(session: Session, client: Client, conversation: Conversation, text: str, *, verbose: bool) -> None:
    answer = Answer()
    if session.as_json:

        def document(event: ServerEvent) -> None:
            if event.kind != "error":  # told as every failure is
                session.document({"event": event.kind, **_object(event.data)})

        generate(client, conversation.ask(text), answer, on_event=document)
        return
    try:
        generate(client, conversation.ask(text), answer, on_text=write_text)
    finally:
        if answer.parts and not answer.text.endswith("\n"):
            write_text("\n")
    if verbose and answer.ending:
        session.note(pace(answer.ending))


class _Chat:
    """The loop of lines and answers. Ctrl-C ends an answer, never the program."""

    def __init__(self, session: Session, client: Client, conversation: Conversation, *, verbose: bool) -> None:
        self._session = session
        self._client = client
        self._conversation = conversation
        self._verbose = verbose

    def run(self) -> None:
        _with_line_editing()
        self._session.note(f"{self._conversation.model}: /help says what can be done here, /bye leaves.")
        for line in self._lines():
            if line.verb is Verb.BYE:
                return
            if line.verb is Verb.SAY:
                self._say(line.text)
            else:
                self._obey(line)

    def _lines(self) -> Iterator[Line]:
        """Lines until the end of input; a text between fences is never a command."""
        while True:
            try:
                typed = input(">>> ")
                fenced = typed.startswith(_FENCE)
                line = Line(Verb.SAY, text=self._fenced(typed.removeprefix(_FENCE))) if fenced else read_line(typed)
            except KeyboardInterrupt:
                self._session.note("\nCtrl-D or /bye leaves.")
                continue
            except EOFError:
                self._session.say()
                return
            yield line

    def _fenced(self, line: str) -> str:
        lines = []
        while not line.endswith(_FENCE):
            lines.append(line)
            line = input("... ")
        return "\n".join([*lines, line.removesuffix(_FENCE)]).strip()

    def _say(self, text: str) -> None:
        answer = Answer()
        try:
            generate(self._client, self._conversation.ask(text), answer, on_text=write_text)
        except KeyboardInterrupt:
            self._session.note("\n(stopped)")
        except CommandFailed as failure:
            write_text("\n" if answer.parts else "")
            self._session.tell(failure.problem)
        else:
            write_text("\n\n")
        self._conversation.remember(text, answer.text)
        if self._verbose and answer.ending:
            self._session.note(pace(answer.ending))

    def _obey(self, line: Line) -> None:
        match line.verb:
            case Verb.CLEAR:
                self._conversation.turns.clear()
                self._session.note("The conversation is forgotten.")
            case Verb.SET:
                self._session.note(self._conversation.set(line.name, line.value))
            case Verb.SHOW:
                self._session.table(tables.facts([*self._conversation.shown()]))
            case Verb.HELP:
                self._session.note(HELP)
            case Verb.UNKNOWN:
                self._session.note(f"{line.text} is nothing I know; /help lists what there is.")
            case _:
                pass


def _with_line_editing() -> None:
    """Arrow keys and a history for `input`, where Python has them."""
    try:
        import readline  # noqa: F401 - importing it is what does it
    except ImportError:
        return


def _object(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
