"""Words in: messages through the model's chat template to tokens, on a side thread of the worker.

The template comes from a model file and is hostile until shown otherwise: it runs in jinja2's immutable sandbox with
few globals, bounded operators, a time limit and an output limit, and in a process that holds nothing but this model.
Text of users never becomes special tokens.
"""

from __future__ import annotations

import ctypes
import datetime
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.domain.errors import NoChatTemplate, TemplateFailed
from service.domain.generation import GenerationRequest, Message

_MAX_TEMPLATE_CHARACTERS = 128 * 1024
_MAX_NESTING = 64
_MAX_OUTPUT_CHARACTERS = 8 * 1024 * 1024
_MAX_PRODUCT = 1 << 20  # characters or items of a repeated sequence; bits of a number are far fewer
_MAX_LOOP_ITEMS = 100_000
_RENDER_SECONDS = 1.0

Tokenize = Callable[..., list[int]]


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


class PromptRenderer:
    """Renders messages and prompts of one model to token ids."""

    def __init__(
        self,
        *,
        template: str | None,
        tokenize: Tokenize,
        bos_token: int,
        adds_bos: bool,
        bos_text: str,
        eos_text: str,
        special_texts: Sequence[str],
    ) -> None:
        """`tokenize(text, add_special=, parse_special=)` is the model's own; `special_texts` are its control tokens.

        A template that cannot be compiled is remembered as broken: raw prompts still work.
        """
        self._tokenize = tokenize
        self._bos_token = bos_token
        self._adds_bos = adds_bos
        self._bos_text = bos_text
        self._eos_text = eos_text
        longest_first = sorted({text for text in special_texts if text}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._template: jinja2.Template | None = None
        self._template_error: TemplateFailed | None = None
        if template is not None:
            try:
                self._template = _compile(template)
            except TemplateFailed as error:
                self._template_error = error

    def tokens(self, request: GenerationRequest) -> list[int]:
        """Token ids of a request. Raises NoChatTemplate or TemplateFailed for messages that cannot be rendered."""
        if request.prompt is not None:
            return self._tokenize(request.prompt, add_special=True, parse_special=request.parse_special)
        return self._chat_tokens(request.messages)

    def _chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        if self._template_error is not None:
            raise self._template_error
        if self._template is None:
            raise NoChatTemplate(
                "This model's file has no chat template. Send a prompt instead of messages.", param="messages"
            )
        guarded, hidden = self._hide_special_tokens(messages)
        text = self._render(self._template, guarded)
        tokens: list[int] = []
        for part, is_users in _split(text, hidden):
            tokens += self._tokenize(part, add_special=False, parse_special=not is_users)
        # Most templates write the BOS token themselves; the others rely on the tokenizer to add it.
        if self._adds_bos and (not tokens or tokens[0] != self._bos_token):
            tokens.insert(0, self._bos_token)
        return tokens

    def _hide_special_tokens(self, messages: Sequence[Message]) -> tuple[list[dict[str, str]], dict[str, str]]:
        """Replace texts of special tokens in users' words by placeholders that templates carry through unchanged."""
        hidden: dict[str, str] = {}
        nonce = secrets.randbelow(10**18)

        def hide(match: re.Match[str]) -> str:
            # Private-use characters and digits: no filter of a template changes them, no tokenizer knows them.
            placeholder = f"\ue000{nonce:018}{len(hidden)}\ue001"
            hidden[placeholder] = match.group()
            return placeholder

        guarded = []
        for message in messages:
            content = message.content if self._special is None else self._special.sub(hide, message.content)
            guarded.append({"role": message.role, "content": content})
        return guarded, hidden

    def _render(self, template: jinja2.Template, messages: list[dict[str, str]]) -> str:
        variables: Mapping[str, Any] = {
            "messages": messages,
            "add_generation_prompt": True,
            "bos_token": self._bos_text,
            "eos_token": self._eos_text,
            "tools": None,
        }
        pieces: list[str] = []
        size = 0
        try:
            with _time_limit(_RENDER_SECONDS):
                for piece in template.generate(variables):
                    size += len(piece)
                    if size > _MAX_OUTPUT_CHARACTERS:
                        _refuse("The chat template makes too long a text.")
                    pieces.append(piece)
        except TemplateFailed:
            raise
        except _OutOfTime:
            _refuse(f"The chat template ran for more than {_RENDER_SECONDS:g} s.")
        except Exception as error:
            # Whatever a template does wrong is the template's fault, RecursionError and MemoryError included.
            _refuse(f"The chat template failed ({type(error).__name__}).")
        return "".join(pieces)


def _compile(source: str) -> jinja2.Template:
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
        with _time_limit(_RENDER_SECONDS):
            if _depth(environment.parse(source)) > _MAX_NESTING:
                _refuse(f"The chat template is nested deeper than {_MAX_NESTING} levels.")
            return environment.from_string(source)
    except TemplateFailed:
        raise
    except (_OutOfTime, Exception) as error:
        raise TemplateFailed(
            f"The model's chat template cannot be compiled ({type(error).__name__}). "
            "Send a prompt instead of messages.",
            param="messages",
        ) from None


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


def _split(text: str, hidden: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Cut rendered text at placeholders: (text, whether it is users' own words that must stay words)."""
    if not hidden:
        yield text, False
        return
    pattern = re.compile("|".join(map(re.escape, sorted(hidden, key=len, reverse=True))))
    position = 0
    for match in pattern.finditer(text):
        if match.start() > position:
            yield text[position : match.start()], False
        yield hidden[match.group()], True
        position = match.end()
    if position < len(text):
        yield text[position:], False
