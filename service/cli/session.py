"""What a command works with: where the server is, how to print, and how a failure is told.

On a terminal, tables and bars; in a pipe, plain lines that are never wrapped; with --json, JSON alone.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.client import Client
from service.cli.failures import CommandFailed, ExitCode, Problem

DEFAULT_PORT = 8080
SERVER_FILE = "server.json"  # in the home, as service.app writes it
# Wide enough that no row of a table is wrapped where a program reads it.
_PIPE_COLUMNS = 1000


@dataclass(frozen=True, slots=True)
class Session:
    """One run of the command. `out` is for results, `err` for everything said about them."""

    url: str
    api_key: str | None
    as_json: bool
    out: Console
    err: Console

    def client(self, transport: httpx.BaseTransport | None = None) -> Client:
        """A connection to the server; use it in a `with` block."""
        return Client(self.url, self.api_key, transport=transport)

    @property
    def is_live(self) -> bool:
        """Whether bars may move: a terminal, and a person in front of it."""
        return self.err.is_terminal and not self.as_json

    def silenced(self) -> Session:
        """This session with nothing shown to people: for the steps of a command whose answer is one JSON document."""
        nowhere = Console(file=io.StringIO(), quiet=True)
        return replace(self, as_json=False, out=nowhere, err=nowhere)

    def document(self, value: BaseModel | Mapping[str, Any]) -> None:
        """One JSON document, or one line of a stream of them, on standard output."""
        plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        sys.stdout.write(json.dumps(plain, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def say(self, text: str | Text = "") -> None:
        """One line of a result, for people; nothing with --json."""
        if not self.as_json:
            self.out.print(text)

    def table(self, table: Table) -> None:
        """A table as a result; without padding at its right edge where a program reads it."""
        if self.as_json:
            return
        if self.out.is_terminal:
            self.out.print(table)
            return
        with self.out.capture() as captured:
            self.out.print(table)
        for line in captured.get().splitlines():
            self.out.print(Text(line.rstrip()), soft_wrap=True)

    def note(self, text: str, style: str = "dim") -> None:
        """One line about what is going on, on standard error; nothing with --json."""
        if not self.as_json:
            self.err.print(Text(text, style=style))

    def tell(self, problem: Problem) -> None:
        """A failure: an error document with --json, else a line and its remedy on standard error."""
        if self.as_json:
            error = {"code": problem.code, "message": problem.message, "remedy": problem.remedy}
            self.document({"error": error})
            return
        self.err.print(Text.assemble(("error: ", "bold red"), problem.message))
        if problem.remedy:
            self.err.print(Text.assemble(("  try: ", "bold"), problem.remedy))


def open_session(url: str | None, api_key: str | None, as_json: bool) -> Session:
    """A session from the options given and the environment. Raises CommandFailed for a bad QUANTRY_PORT."""
    return Session(
        url=url or default_url(os.environ),
        api_key=api_key or os.environ.get("QUANTRY_API_KEY") or None,
        as_json=as_json,
        out=_console(sys.stdout),
        err=_console(sys.stderr),
    )


def default_url(environ: Mapping[str, str]) -> str:
    """QUANTRY_URL, else this machine at QUANTRY_PORT or 8080; for port 0, what the running server wrote down."""
    if environ.get("QUANTRY_URL"):
        return environ["QUANTRY_URL"]
    port = environ.get("QUANTRY_PORT") or str(DEFAULT_PORT)
    if not port.isdecimal() or int(port) > 65535:
        raise CommandFailed(
            "invalid_parameter",
            f"QUANTRY_PORT is {port!r}, which is no port.",
            remedy="set it to a number from 1 to 65535, or name the server with --url",
            exit_code=ExitCode.USAGE,
        )
    if int(port) == 0:
        running = running_server(Path(environ.get("QUANTRY_HOME") or "~/.quantry").expanduser())
        if running is not None:
            return running.url
    return f"http://127.0.0.1:{port}"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """What a server wrote into its home; it may have died since."""

    pid: int
    url: str


def running_server(home: Path) -> RunningServer | None:
    """The server that says it works on this home."""
    try:
        found = json.loads((home / SERVER_FILE).read_text())
        return RunningServer(pid=int(found["pid"]), url=_reachable(str(found["url"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _reachable(url: str) -> str:
    """A server on all addresses of this machine is called at its loopback address."""
    return url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _console(file: Any) -> Console:
    console = Console(file=file, markup=False, highlight=False, emoji=False)
    return (
        console
        if console.is_terminal
        else Console(file=file, markup=False, highlight=False, emoji=False, width=_PIPE_COLUMNS)
    )
