"""Chat templates, compiled and rendered in a sandbox; side thread of the worker.

A template comes from a model file and is hostile until shown otherwise: it runs in jinja2's immutable sandbox with few
globals, bounded operators, a time limit and an output limit, and in a process that holds nothing but this model.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.domain.errors import TemplateFailed

_MAX_TEMPLATE_CHARACTERS = 128 * 1024
_MAX_NESTING = 64
_MAX_OUTPUT_CHARACTERS = 8 * 1024 * 1024
_MAX_PRODUCT = 1 << 20  # characters or items of a repeated sequence; bits of a number are far fewer
_MAX_LOOP_ITEMS = 100_000
RENDER_SECONDS = 1.0


class _OutOfTime(BaseException):
    """Raised inside the rendering thread when its second is over; no template can catch it."""


class _GenerationTag(Extension):
    """`{% generation %}`: a marker for training masks in some templates; the text inside is kept."""

    tags = {"generation"}  # noqa: RUF012  (the base class declares it as an instance variable)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox with bounded arithmetic: `"A" * 10**9` and `9**9**9` are refused before they are computed."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _refuse("The chat template uses powers.")
        if operator == "*" and _product_size(left, right) > _MAX_PRODUCT:
            _refuse("The chat template multiplies too far.")
        if operator == "%" and isinstance(left, str):
            _refuse("The chat template formats strings with %.")
        if operator == "+" and isinstance(left, str) and len(left) > _MAX_OUTPUT_CHARACTERS:
            _refuse("The chat template makes too long a text.")
        return super().call_binop(context, operator, left, right)


def _product_size(left: Any, right: Any) -> int:
    """Characters, items or bits of `left * right`, before it is computed."""
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    if isinstance(left, float) or isinstance(right, float):
        return 0
    sequence, times = (left, right) if isinstance(right, int) else (right, left)
    return len(sequence) * int(times)


def _refuse(message: str) -> NoReturn:
    raise TemplateFailed(f"{message} Use a prompt without messages for this model.", param="messages")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateFailed(f"The model's chat template refused the messages: {str(message)[:300]}", param="messages")


def _tojson(value: Any, indent: int | None = None, **_ignored: Any) -> str:
    # jinja2's own filter escapes for HTML, which would change the prompt.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def compile_template(source: str, *, seconds: float = RENDER_SECONDS) -> tuple[jinja2.Template, frozenset[str]]:
    """The template, and the names of the variables that it reads; within `seconds`. Raises TemplateFailed."""
    if len(source) > _MAX_TEMPLATE_CHARACTERS:
        _refuse(f"The chat template is longer than {_MAX_TEMPLATE_CHARACTERS} characters.")
    environment = _Sandbox(
        loader=None, autoescape=False, trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.globals = {
        "range": _bounded_range,
        "namespace": environment.globals["namespace"],
        "dict": dict,
        "raise_exception": _raise_exception,
        "strftime_now": lambda form: datetime.datetime.now(datetime.UTC).strftime(str(form)[:100]),
    }
    environment.filters["tojson"] = _tojson
    try:
        with _time_limit(seconds):
            parsed = environment.parse(source)
            if _depth(parsed) > _MAX_NESTING:
                _refuse(f"The chat template is nested deeper than {_MAX_NESTING} levels.")
            return environment.from_string(source), frozenset(meta.find_undeclared_variables(parsed))
    except TemplateFailed:
        raise
    except (_OutOfTime, Exception) as error:
        raise TemplateFailed(
            f"The model's chat template cannot be compiled ({type(error).__name__}). "
            "Send a prompt instead of messages.",
            param="messages",
        ) from None


def render(template: jinja2.Template, variables: Mapping[str, Any], deadline: float) -> str:
    """The text of plain JSON `variables`, before `deadline` by the monotonic clock. Raises TemplateFailed."""
    pieces: list[str] = []
    size = 0
    try:
        with _time_limit(max(deadline - time.monotonic(), 0.001)):
            for piece in template.generate(variables):
                size += len(piece)
                if size > _MAX_OUTPUT_CHARACTERS:
                    _refuse("The chat template makes too long a text.")
                pieces.append(piece)
    except TemplateFailed:
        raise
    except _OutOfTime:
        _refuse(f"The chat template ran for more than {RENDER_SECONDS:g} s.")
    except Exception as error:
        # Whatever a template does wrong is the template's fault, RecursionError and MemoryError included.
        _refuse(f"The chat template failed ({type(error).__name__}).")
    return "".join(pieces)


def _depth(root: nodes.Node) -> int:
    deepest, level = 0, [root]
    while level:
        deepest += 1
        level = [child for node in level for child in node.iter_child_nodes()]
    return deepest


def _bounded_range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > _MAX_LOOP_ITEMS:
        _refuse(f"The chat template loops over more than {_MAX_LOOP_ITEMS} items.")
    return numbers


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime in this thread when the block takes longer.

    An asynchronous exception reaches pure Python code at its next bytecode, which is all that a template can run;
    what it cannot reach (one long C call) is bounded by the operators above, and by the worker's hang detection.
    """
    thread_id = threading.get_ident()
    lock = threading.Lock()
    done = False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(_OutOfTime))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            done = True
        timer.cancel()
