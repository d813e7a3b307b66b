"""One answer of a model as it streams in: shown, and returned whole. Knows HTTP and the terminal, and no chat."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from service.api.generate_shapes import TimingsShape, UsageShape
from service.cli import figures
from service.cli.client import LONG_SECONDS, Client, ConnectionLost, failure_of, parse, text_of
from service.cli.events import ServerEvent
from service.cli.failures import CommandFailed, ExitCode

_KEPT_CONTROLS = frozenset("\n\t")


class Ending(BaseModel):
    """The data of a `done` event."""

    finish_reason: str
    usage: UsageShape
    timings: TimingsShape


@dataclass(slots=True)
class Answer:
    """The text so far; `ending` is set once it is whole."""

    parts: list[str] = field(default_factory=list)
    ending: Ending | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.parts)


def generate(
    client: Client,
    body: dict[str, Any],
    answer: Answer,
    *,
    on_text: Callable[[str], None] = lambda text: None,
    on_event: Callable[[ServerEvent], None] = lambda event: None,
) -> None:
    """Fill `answer` with the text of POST /v1/generate; what came stays in it however this ends.

    Ctrl-C hangs up, and the server cancels. Raises CommandFailed.
    """
    try:
        with client.stream("POST", "/v1/generate", body=body, silence_seconds=LONG_SECONDS) as stream:
            for event in stream:
                on_event(event)
                if event.kind == "token":
                    text = text_of(event)
                    answer.parts.append(text)
                    on_text(text)
                elif event.kind == "done":
                    answer.ending = parse(Ending, event)
                elif event.kind == "error":
                    raise failure_of(event)
    except ConnectionLost:
        pass
    if answer.ending is None:
        raise CommandFailed(
            "connection_lost",
            "The connection broke before the answer was whole.",
            remedy="ask again; `quantry doctor` says whether the server is well",
            exit_code=ExitCode.UNREACHABLE,
        )


def write_text(text: str) -> None:
    """To standard output at once. On a terminal a model's text cannot move the cursor or change colours."""
    if sys.stdout.isatty():
        text = harmless(text)
    sys.stdout.write(text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """Text without control characters (C0, C1, delete) but newline and tab."""
    return "".join(
        character
        for character in text
        if character in _KEPT_CONTROLS or not (ord(character) < 32 or 127 <= ord(character) < 160)
    )


def pace(ending: Ending) -> str:
    """Counts and rates of an answer, as one line."""
    usage, timings = ending.usage, ending.timings
    rate = timings.generation_tokens_per_second
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [
        f"{usage.prompt_tokens} prompt tokens{cached} in {figures.duration(timings.prompt_seconds)}",
        f"{usage.completion_tokens} tokens in {figures.duration(timings.generation_seconds)}"
        + (f" ({rate:.1f}/s)" if rate else ""),
    ]
    if usage.draft_tokens:
        parts.append(f"{usage.accepted_tokens} of {usage.draft_tokens} guesses right")
    if timings.load_seconds:
        parts.append(f"loaded in {figures.duration(timings.load_seconds)}")
    return ", ".join([*parts, f"ended by {ending.finish_reason}"])
