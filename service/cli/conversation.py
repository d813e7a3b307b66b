"""A chat as values: its turns, its settings, and what a typed line asks for. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# What /set takes: the fields of POST /v1/generate, each with its type.
KNOBS: dict[str, Callable[[str], int | float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "typical_p": float,
    "repeat_penalty": float,
    "repeat_last_n": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "dry_multiplier": float,
    "dry_base": float,
    "dry_allowed_length": int,
    "dry_penalty_last_n": int,
    "xtc_probability": float,
    "xtc_threshold": float,
    "mirostat": int,
    "mirostat_tau": float,
    "mirostat_eta": float,
    "context_length": int,
    "seed": int,
    "max_tokens": int,
}

HELP = """\
/set NAME VALUE   temperature, top_p, top_k, min_p, repeat_penalty, seed, max_tokens, ...
/set system TEXT  what the model is told first; without TEXT nothing
/show             the settings in force
/clear            forget the conversation
/bye              leave (so does Ctrl-D)
Ctrl-C stops an answer and keeps the chat. \"\"\" begins and ends a text of several lines."""


class Verb(StrEnum):
    """What a line asks for."""

    SAY = "say"
    NOTHING = "nothing"
    BYE = "bye"
    CLEAR = "clear"
    SET = "set"
    SHOW = "show"
    HELP = "help"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Line:
    """A typed line, read. `name` and `value` are those of /set; `text` is what to say, or the unknown word."""

    verb: Verb
    text: str = ""
    name: str = ""
    value: str = ""


def read_line(line: str) -> Line:
    """What a typed line asks for. Only a line that begins with / is a command."""
    text = line.strip()
    if not text:
        return Line(Verb.NOTHING)
    if not text.startswith("/"):
        return Line(Verb.SAY, text=text)
    word, _, rest = text[1:].partition(" ")
    match word.lower():
        case "bye" | "exit" | "quit":
            return Line(Verb.BYE)
        case "clear":
            return Line(Verb.CLEAR)
        case "set":
            name, _, value = rest.strip().partition(" ")
            return Line(Verb.SET, name=name.lower(), value=value.strip())
        case "show":
            return Line(Verb.SHOW)
        case "help" | "?":
            return Line(Verb.HELP)
        case _:
            return Line(Verb.UNKNOWN, text=f"/{word}")


@dataclass(slots=True)
class Conversation:
    """The turns so far and how to answer.

    `raw` sends text without the model's chat template; `format`, `draft` and `adapters` are fields of
    POST /v1/generate.
    """

    model: str
    system: str | None = None
    raw: bool = False
    knobs: dict[str, int | float] = field(default_factory=dict)
    stop: list[str] = field(default_factory=list)
    format: str | dict[str, Any] | None = None
    draft: str | None = None
    adapters: list[dict[str, Any]] = field(default_factory=list)
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> dict[str, Any]:
        """The body of the request that says `text` next; nothing is remembered yet."""
        body: dict[str, Any] = {"model": self.model, "stream": True, **self.knobs}
        if self.stop:
            body["stop"] = self.stop
        if self.format is not None:
            body["format"] = self.format
        if self.draft is not None:
            body["draft"] = self.draft
        if self.adapters:
            body["adapters"] = self.adapters
        if self.raw:
            return body | {"prompt": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        return body | {"messages": [*first, *self.turns, {"role": "user", "content": text}]}

    def remember(self, text: str, answer: str) -> None:
        """Keep a question with its answer, cut short or not; a question that got none is dropped."""
        if answer:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def set(self, name: str, value: str) -> str:
        """Carry out /set; the line to show for it. A wrong value changes nothing."""
        if name == "system":
            self.system = value or None
            return "system text set" if value else "no system text"
        kind = KNOBS.get(name)
        if kind is None:
            return f"no setting {name!r}; there are: {', '.join(KNOBS)}, system"
        if not value:
            self.knobs.pop(name, None)
            return f"{name} as the server has it"
        try:
            self.knobs[name] = kind(value)
        except ValueError:
            return f"{name} takes {'a whole number' if kind is int else 'a number'}"
        return f"{name} = {self.knobs[name]}"

    def shown(self) -> list[tuple[str, str]]:
        """The settings in force."""
        pairs = [("model", self.model), ("system", self.system or "-"), ("turns", str(len(self.turns)))]
        return [*pairs, *((name, str(value)) for name, value in self.knobs.items())]
