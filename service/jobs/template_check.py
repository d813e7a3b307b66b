"""Renders a chat template once for each kind of conversation, in a process of its own with little memory and time.

`python -m service.jobs.template_check` reads one JSON object (`template`, `bos`, `eos`) and writes a line for each case
before and after it: whoever reads them knows what it died of. A template comes from a model file and may try anything;
this process holds nothing, and ends by SIGXCPU where no limit inside Python can stop it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

from service.children import bind_to_parent
from service.domain.errors import TemplateFailed
from service.engine.template import RENDER_SECONDS, compile_template, render

COMPILING = "compiling"
ONE_TURN = "one turn"
_MEMORY_BYTES = 512 * 1024**2
_OPEN_FILES = 16
# By the clock, for a process that may be stopped or get no processor for long; what it may use of one is CPU seconds.
_PATIENCE_SECONDS = 3600.0

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "What the weather is like.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_HELLO = _turn("user", "Hello")
CASES: Mapping[str, Mapping[str, Any]] = {
    ONE_TURN: {"messages": [_HELLO]},
    "several turns": {"messages": [_HELLO, _turn("assistant", "Hi!"), _turn("user", "And now?")]},
    "a system turn": {"messages": [_turn("system", "Be brief."), _HELLO]},
    "tools": {"messages": [_HELLO], "tools": [_TOOL]},
    "any Unicode": {"messages": [_turn("user", "\u00fc \u4e16 \U0001f642 \u202e \u2028 \u0000 {{ x }} {% raw %}")]},
    "an empty turn": {"messages": [_turn("user", "")]},
}


def main() -> int:
    """Render all cases; always 0 where it comes to its end."""
    bind_to_parent()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    given = json.loads(sys.stdin.buffer.read())
    _allow_seconds()
    _say({"case": COMPILING})
    try:
        template, _ = compile_template(given["template"], seconds=_PATIENCE_SECONDS)
    except TemplateFailed as problem:
        _say({"case": COMPILING, "refused": problem.message})
        return 0
    for name, more in CASES.items():
        _allow_seconds()
        _say({"case": name})
        variables = {"add_generation_prompt": True, "bos_token": given["bos"], "eos_token": given["eos"], "tools": None}
        try:
            render(template, {**variables, **more}, time.monotonic() + _PATIENCE_SECONDS)
        except TemplateFailed as problem:
            _say({"case": name, "refused": problem.message})
        else:
            _say({"case": name, "refused": None})
    return 0


def _allow_seconds() -> None:
    """One case more: whole seconds, so that it gets what it would get at work and a little."""
    used = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + RENDER_SECONDS) + 1, hard))


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
