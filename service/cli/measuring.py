"""Options for what to measure, shared by `evaluate` and `quantize --evaluate`, and the request's fields they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

_PANEL = "What to measure"


def _option(name: str, about: str, **rules: Any) -> Any:
    return typer.Option(name, help=about, rich_help_panel=_PANEL, show_default=False, **rules)


# Name of the keyword argument -> annotation, for `options.command(added=...)`.
OPTIONS: dict[str, Any] = {
    "text": Annotated[str | None, _option("--text", "Dataset for perplexity and divergence, or none.", metavar="NAME")],
    "chunks": Annotated[int | None, _option("--chunks", "Windows of the text to read; by default all.", min=1)],
    "window": Annotated[int | None, _option("--window", "Tokens of a window; by default 512.", min=64, max=16384)],
    "task": Annotated[list[str] | None, _option("--task", "A task to score; may be given again.", metavar="NAME")],
    "no_speed": Annotated[bool | None, _option("--no-speed", "Do not measure speed and memory.")],
}


def fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an evaluation; those that were not given are left out."""
    body: dict[str, Any] = {}
    if options.get("text"):
        body["dataset"] = None if options["text"] == "none" else options["text"]
    for name in ("chunks", "window"):
        if options.get(name):
            body[name] = options[name]
    if options.get("task"):
        body["tasks"] = options["task"]
    if options.get("no_speed"):
        body["speed"] = False
    return body
