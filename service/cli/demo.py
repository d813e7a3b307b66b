"""`quantry demo`: a server with two small models, every level of one of them, and what each level costs, shown.

Every step finds what an earlier run has made and goes on, so the second run takes seconds.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.text import Text

from service.cli import background, figures, tables
from service.cli.answers import Answer, generate, harmless, pace
from service.cli.client import Client
from service.cli.demo_models import (
    COMPARED,
    LEVELS,
    SMOLLM2_QUESTION,
    WORDS,
    DemoFiles,
    expected_answers,
    find_files,
    question,
)
from service.cli.failures import CommandFailed, ExitCode
from service.cli.following import ENDED
from service.cli.importing import import_file
from service.cli.jobs import watch_job
from service.cli.models import print_variants, variants
from service.cli.options import command
from service.cli.quantizing import submit
from service.cli.session import Session, default_url
from service.settings import Settings, load_settings

_WORD_TOKENS = 64
_ANSWER_TOKENS = 48
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.5


@dataclass(slots=True)
class _Report:
    """What was done, for the summary: sentences with seconds; answers by level; whether each was the trained one."""

    steps: list[tuple[str, float]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Server:
    """The server in use; `pid` where this machine's home has it, `process` where this run started it."""

    url: str
    pid: int | None
    started: background.Started | None = None


def register(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "demo", "Start here")(demo)


def demo(
    session: Session,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Use a running server (--url); start none.")] = False,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Keep the server until Ctrl-C, then stop it.")
    ] = False,
) -> None:
    """Start a server, import two small models, quantize one to every level, and talk to them."""
    began = time.monotonic()
    if foreground:
        end_on_signals()
    files = find_files()
    report = _Report()
    settings = load_settings()
    shown = session.silenced() if session.as_json else session
    server = _Server(session.url, None) if no_serve else _start(shown, settings, report)
    try:
        shown = _at(shown, server.url, settings)
        with shown.client() as client:
            _prepare(shown, client, files, report, upload=True if no_serve else None)
            print_variants(shown, variants(client).data)
            shown.say()
            word = _compare(shown, client, files, report)
            if files.smollm2 is not None:
                _ask_smollm2(shown, client, report)
        seconds = time.monotonic() - began
        if session.as_json:
            session.document(_document(server, report, seconds))
        _summary(shown, server, report, word, seconds, has_smollm2=files.smollm2 is not None)
        if foreground and server.started is not None:
            _stay(shown, server.started)
        elif server.pid is not None:
            how = f"stop it: {_this_command()} stop-server"
            shown.say(f"The server goes on in the background (process {server.pid}); {how}")
    finally:
        # A server that is to outlive this command is only ended where it was asked to stay attached.
        if foreground and server.started is not None:
            background.end(server.started.process.pid, settings.drain_seconds + _STOP_SECONDS)
            shown.note("The server has stopped.", style="")


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind as Ctrl-C does, so that an attached server ends with this command."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _unwind)


def _unwind(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start(session: Session, settings: Settings, report: _Report) -> _Server:
    """The server of this home, started unless it runs."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    running = background.live_server(settings.home)
    if running is not None and background.answers(running.url):
        session.note(f"Using the server that runs at {running.url}.", style="")
        return _Server(running.url, running.pid)
    url = f"http://127.0.0.1:{settings.port}"
    if settings.port and background.answers(url):
        session.note(f"Using the server that runs at {url}.", style="")
        return _Server(url, None)
    began = time.monotonic()
    process = background.start(settings)
    with _busy(session, "starting the server"):
        started = background.wait_until_ready(process, settings.home)
    report.steps.append((f"started a server at {started.url}", time.monotonic() - began))
    session.note(f"A server runs at {started.url}; its log is {background.log_path(settings.home)}.", style="")
    return _Server(started.url, process.pid, started)


def _at(session: Session, url: str, settings: Settings) -> Session:
    """The session, talking to that server, with a key it knows."""
    key = session.api_key or (settings.api_keys[0].get_secret_value() if settings.api_keys else None)
    return replace(session, url=url, api_key=key)


def _prepare(session: Session, client: Client, files: DemoFiles, report: _Report, *, upload: bool | None) -> None:
    _import(session, client, "gloss", files.gloss, report, upload=upload)
    if files.smollm2 is not None:
        _import(session, client, "smollm2", files.smollm2, report, upload=upload)
    else:
        session.note(
            "SmolLM2 is not on this machine, so it is left out; scripts/fetch_smollm2.py fetches it.", style=""
        )
    began = time.monotonic()
    there = {row.quantization for row in variants(client, "gloss").data if row.model == "gloss"}
    missing = [level for level in LEVELS if level not in there]
    if not missing:
        report.steps.append((f"found gloss in {len(LEVELS)} levels", 0.0))
        return
    job = submit(client, "gloss:F16", list(missing))
    if job.status not in ENDED:
        session.note("Quantizing gloss:", style="")
        watch_job(session, client, job)
    report.steps.append((f"quantized gloss to {len(missing)} levels", time.monotonic() - began))


def _import(session: Session, client: Client, name: str, path: Path, report: _Report, *, upload: bool | None) -> None:
    began = time.monotonic()
    known = [row for row in variants(client, name).data if row.model == name and row.lineage.origin == "imported"]
    if known:
        report.steps.append((f"found {known[0].name}", 0.0))
        return
    session.note(f"Importing {path.name} as {name}.", style="")
    variant = import_file(session, client, name, path, upload=upload)
    lossy = ", which has lost precision already" if variant.lossy else ""
    report.steps.append(
        (f"imported {variant.name} ({figures.size(variant.size_bytes)}{lossy})", time.monotonic() - began)
    )


def _compare(session: Session, client: Client, files: DemoFiles, report: _Report) -> str:
    """Ask each compared level for one word, the first that shows the difference; the word."""
    began = time.monotonic()
    expected = expected_answers(files.words)
    word, rows = WORDS[0], []
    for word in WORDS:
        rows = [(level, _ask(client, f"gloss:{level}", question(word), _WORD_TOKENS)) for level in COMPARED]
        right = [answer.text.strip() == expected.get(word) for _, answer in rows]
        if not expected or right == [True, True, False]:
            break
    session.say(f"One question to three levels, greedy: {question(word)}")
    pairs: list[tuple[str, str | Text]] = []
    for level, answer in rows:
        text = harmless(answer.text.strip())
        correct = text == expected.get(word)
        mark = (
            Text("right  " if correct else "wrong  ", style="green" if correct else "bold red") if expected else Text()
        )
        pairs.append((f"gloss:{level}", mark.append(text, style="default")))
        report.answers.append({"model": f"gloss:{level}", "question": question(word), "answer": text, "right": correct})
    session.table(tables.facts(pairs))
    session.say()
    report.steps.append((f"asked {', '.join(COMPARED)} what {word!r} means", time.monotonic() - began))
    return word


def _ask_smollm2(session: Session, client: Client, report: _Report) -> None:
    began = time.monotonic()
    with _busy(session, "asking smollm2"):
        answer = _ask(client, "smollm2", SMOLLM2_QUESTION, _ANSWER_TOKENS)
    text = harmless(answer.text.strip())
    session.say(Text.assemble(("smollm2> ", "dim"), SMOLLM2_QUESTION))
    session.say(text)
    if answer.ending is not None:
        session.note(pace(answer.ending))
    session.say()
    report.answers.append({"model": "smollm2", "question": SMOLLM2_QUESTION, "answer": text})
    report.steps.append(("asked smollm2 a question", time.monotonic() - began))


def _ask(client: Client, model: str, text: str, max_tokens: int) -> Answer:
    answer = Answer()
    messages = [{"role": "user", "content": text}]
    body = {"model": model, "messages": messages, "temperature": 0.0, "max_tokens": max_tokens, "stream": True}
    generate(client, body, answer)
    return answer


def _summary(
    session: Session, server: _Server, report: _Report, word: str, seconds: float, *, has_smollm2: bool
) -> None:
    commands = try_these(server.url, word, has_smollm2=has_smollm2, with_key=session.api_key is not None)
    session.say(Text(f"Done in {figures.duration(seconds)}:", style="bold"))
    pairs: list[tuple[str, str | Text]] = [(f"{figures.duration(taken):>8}", step) for step, taken in report.steps]
    session.table(tables.facts(pairs))
    session.say()
    session.say(Text("Try:", style="bold"))
    for line in commands:
        # Never wrapped: they are there to be copied.
        session.out.print(f"  {line}", soft_wrap=True)
    if importlib.util.find_spec("openai") is None:
        session.note("  (the last one needs the client: pip install openai)")
    session.say()


def _document(server: _Server, report: _Report, seconds: float) -> dict[str, Any]:
    steps = [{"step": step, "seconds": round(taken, 3)} for step, taken in report.steps]
    return {
        "url": server.url, "pid": server.pid, "steps": steps, "answers": report.answers, "seconds": round(seconds, 3),
    }  # fmt: skip


def try_these(url: str, word: str, *, has_smollm2: bool, with_key: bool) -> tuple[str, str, str]:
    """Three commands: curl, this command, and OpenAI's own client. They can be pasted into a shell as they are."""
    model = "smollm2" if has_smollm2 else "gloss:Q4_K_M"
    body = json.dumps({"model": "gloss:Q4_K_M", "messages": [{"role": "user", "content": question(word)}]})
    key = ' -H "Authorization: Bearer $QUANTRY_API_KEY"' if with_key else ""
    curl = f"curl -s {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
    at = "" if url == default_url({}) else f"QUANTRY_URL={url} "
    python_key = "__import__('os').environ['QUANTRY_API_KEY']" if with_key else "'none'"
    python = (
        f"import openai; print(openai.OpenAI(base_url='{url}/v1', api_key={python_key}).chat.completions.create("
        f"model='{model}', messages=[{{'role': 'user', 'content': 'Hello'}}]).choices[0].message.content)"
    )
    return curl, f"{at}{_this_command()} run {model}", f'{_interpreter()} -c "{python}"'


def _this_command() -> str:
    """How to call this command from the shell it was called from."""
    if shutil.which("quantry"):
        return "quantry"
    beside = Path(sys.executable).with_name("quantry")
    return shlex.quote(_relative(beside)) if beside.exists() else f"{_interpreter()} -m service"


def _interpreter() -> str:
    return "python3" if shutil.which("python3") == sys.executable else shlex.quote(_relative(Path(sys.executable)))


def _relative(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _stay(session: Session, started: background.Started) -> None:
    session.note("The server runs until Ctrl-C.", style="")
    try:
        while started.process.poll() is None:
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        return
    raise CommandFailed("server_ended", "The server has ended by itself.", exit_code=ExitCode.FAILED)


@contextmanager
def _busy(session: Session, what: str) -> Iterator[None]:
    """A sign of life on a terminal."""
    if not session.is_live:
        yield
        return
    with session.err.status(what):
        yield
