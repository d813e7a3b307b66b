"""Words in: messages through the model's chat template to tokens, on a side thread of the worker.

Text of users never becomes special tokens.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jinja2

from service.domain.errors import NoChatTemplate, TemplateFailed
from service.domain.generation import GenerationRequest, Reasoning, ToolMode
from service.engine.conversation import Turn, explained, plain_turns, tool_values, turns
from service.engine.formats import GENERIC, CallFormat, Format, Thinking, detect
from service.engine.template import RENDER_SECONDS, compile_template, render

if TYPE_CHECKING:
    from service.llama.model import Model

Tokenize = Callable[..., list[int]]

# Variables by which templates switch thinking on and off.
_SWITCHES = ("enable_thinking", "thinking")
_OTHER_TEMPLATES = 8  # that requests brought along, kept compiled


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request's tokens, and how the text that follows them is to be read.

    `calls` None: no tool may be called; `thinking` None: the model marks none. `opens_thought`: the prompt ends with
    the beginning of the thinking.
    """

    tokens: list[int]
    calls: CallFormat | None = None
    thinking: Thinking | None = None
    opens_thought: bool = False


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
        self._special_texts = special_texts
        self._others: dict[str, PromptRenderer] = {}  # by template
        longest_first = sorted({text for text in special_texts if text}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._template: jinja2.Template | None = None
        self._template_error: TemplateFailed | None = None
        self._variables: frozenset[str] = frozenset()  # that the template reads
        self.format = Format()
        if template is not None:
            try:
                self._template, self._variables = compile_template(template)
            except TemplateFailed as error:
                self._template_error = error
            else:
                self.format = detect(template, takes_tools="tools" in self._variables)

    @classmethod
    def of(cls, model: Model) -> PromptRenderer:
        """The renderer for a loaded model."""
        return cls(
            template=model.chat_template(),
            tokenize=model.tokenize,
            bos_token=model.bos_token,
            adds_bos=model.adds_bos,
            bos_text=model.piece(model.bos_token, special=True).decode("utf-8", "replace"),
            eos_text=model.piece(model.eos_token, special=True).decode("utf-8", "replace"),
            special_texts=model.special_texts(),
        )

    def with_template(self, template: str) -> PromptRenderer:
        """The renderer of the same model for another chat template; the latest few are kept."""
        found = self._others.pop(template, None)
        if found is None:
            found = PromptRenderer(
                template=template,
                tokenize=self._tokenize,
                bos_token=self._bos_token,
                adds_bos=self._adds_bos,
                bos_text=self._bos_text,
                eos_text=self._eos_text,
                special_texts=self._special_texts,
            )
            if len(self._others) >= _OTHER_TEMPLATES:
                del self._others[next(iter(self._others))]
        self._others[template] = found
        return found

    def is_special(self, text: str) -> bool:
        """Whether a text is that of a token of its own kind, control or made by the model's authors."""
        return self._special is not None and self._special.fullmatch(text) is not None

    def tokens(self, request: GenerationRequest) -> list[int]:
        """Token ids of a request. Raises NoChatTemplate or TemplateFailed for messages that cannot be rendered."""
        return self.prompt(request).tokens

    def prompt(self, request: GenerationRequest) -> Prompt:
        """A request as the model reads it.

        Raises NoChatTemplate or TemplateFailed for messages that cannot be rendered, InvalidParameter for tools and
        calls that are no JSON.
        """
        if request.template is not None:
            return self.with_template(request.template).prompt(replace(request, template=None))
        before = list(request.prompt_tokens)
        if request.prompt is not None:
            more = self._tokenize(request.prompt, add_special=not before, parse_special=request.parse_special)
            return Prompt(before + more)
        if before and not request.messages:
            return Prompt(before)
        parts, calls, opens_thought = self._parts(request)
        tokens: list[int] = []
        for part, is_users in parts:
            tokens += self._tokenize(part, add_special=False, parse_special=not is_users)
        # Most templates write the BOS token themselves; the others rely on the tokenizer to add it.
        if before:
            tokens = tokens[1:] if tokens[:1] == [self._bos_token] else tokens
        elif self._adds_bos and (not tokens or tokens[0] != self._bos_token):
            tokens.insert(0, self._bos_token)
        return Prompt(before + tokens, calls, self.format.thinking, opens_thought)

    def text(self, request: GenerationRequest) -> str:
        """The prompt as text, without what the tokenizer adds and without `prompt_tokens`. Raises as `prompt`."""
        if request.template is not None:
            return self.with_template(request.template).text(replace(request, template=None))
        if request.prompt is not None or not request.messages:
            return request.prompt or ""
        return "".join(part for part, _ in self._parts(request)[0])

    def _parts(self, request: GenerationRequest) -> tuple[list[tuple[str, bool]], CallFormat | None, bool]:
        """The text of messages in pieces (text, whether it is users' own words), and the rest of a Prompt."""
        if self._template_error is not None:
            raise self._template_error
        if self._template is None:
            raise NoChatTemplate(
                "This model's file has no chat template. Send a prompt instead of messages.", param="messages"
            )
        hidden = _Hidden(self._special)
        begun = request.messages[-1].content if request.continues else ""
        if request.continues:
            request = replace(request, messages=request.messages[:-1])
        text, calls = self._chat(self._template, request, hidden)
        text, opens_thought = self._switch_thinking(text, request.reasoning)
        if begun:
            thinking = self.format.thinking
            if opens_thought and thinking is not None:
                text, opens_thought = text + thinking.close, False
            text += str(hidden.guarded(begun))
        return list(hidden.split(text)), calls, opens_thought

    def _chat(
        self, template: jinja2.Template, request: GenerationRequest, hidden: _Hidden
    ) -> tuple[str, CallFormat | None]:
        """The text of messages with what tools they have, and how calls are written in the answer."""
        tools = () if request.tool_choice.mode is ToolMode.NONE else request.tools
        calls = self.format.calls

        deadline = time.monotonic() + RENDER_SECONDS  # for all that is tried
        values = hidden.guarded(tool_values(tools))
        asked = self._thinking_variables(request.reasoning)
        knows_calls = calls is not GENERIC
        given = hidden.guarded((turns if knows_calls else plain_turns)(request.messages, self.format))
        if not tools:
            return self._render_without_tools(template, given, asked, deadline), None
        if calls.explained:
            try:
                text = self._render(template, given, {**asked, "tools": values}, deadline)
                if all(tool.name in text for tool in tools):
                    return text, calls
            except TemplateFailed:
                pass  # some know no result of a tool, or not all that JSON can be
            calls = GENERIC
            given = hidden.guarded(plain_turns(request.messages, self.format))
        try:
            shown = explained(given, values, request.tool_choice, calls.writing)
            return self._render_without_tools(template, shown, asked, deadline), calls
        except TemplateFailed:
            # Some templates know no turn of the system.
            shown = explained(given, values, request.tool_choice, calls.writing, to_user=True)
            return self._render_without_tools(template, shown, asked, deadline), calls

    def _render_without_tools(
        self, template: jinja2.Template, given: list[Turn], asked: Mapping[str, Any], deadline: float
    ) -> str:
        try:
            return self._render(template, given, asked, deadline)
        except TemplateFailed:
            if "tools" not in self._variables:
                raise
            # Some templates look through the tools without looking whether there are any.
            return self._render(template, given, {**asked, "tools": []}, deadline)

    def _thinking_variables(self, reasoning: Reasoning) -> dict[str, Any]:
        """What is asked of the thinking, for those variables that the template reads."""
        asked: dict[str, Any] = {}
        if reasoning.enabled is not None:
            asked |= dict.fromkeys(_SWITCHES, reasoning.enabled)
        if reasoning.effort is not None and reasoning.effort.isalpha():
            asked["reasoning_effort"] = reasoning.effort
        if reasoning.max_tokens is not None:
            asked["thinking_budget"] = reasoning.max_tokens
        return {name: value for name, value in asked.items() if name in self._variables}

    def _switch_thinking(self, text: str, reasoning: Reasoning) -> tuple[str, bool]:
        """The text, with thinking switched off where that is asked and not done yet; whether thinking is open."""
        thinking = self.format.thinking
        if thinking is None:
            return text, False
        is_open = text.rstrip().endswith(thinking.start)
        if reasoning.enabled is not False:
            return text, is_open
        if is_open:
            return text + thinking.close, False
        if not self._variables.intersection(_SWITCHES) and not text.rstrip().endswith(thinking.end):
            text += thinking.empty
        return text, False

    def _render(self, template: jinja2.Template, messages: Any, more: Mapping[str, Any], deadline: float) -> str:
        """The text, before `deadline` by the monotonic clock."""
        variables: Mapping[str, Any] = {
            "messages": messages,
            "add_generation_prompt": True,
            "bos_token": self._bos_text,
            "eos_token": self._eos_text,
            "tools": None,
            **more,
        }
        return render(template, variables, deadline)


class _Hidden:
    """Texts of special tokens in users' words, replaced by placeholders that templates carry through unchanged."""

    def __init__(self, special: re.Pattern[str] | None) -> None:
        self._special = special
        self._nonce = secrets.randbelow(10**18)
        self._texts: dict[str, str] = {}  # by placeholder

    def guarded(self, value: Any) -> Any:
        """The same plain JSON value without texts of special tokens, in names of members neither."""
        if self._special is None:
            return value
        if isinstance(value, str):
            return self._special.sub(self._hide, value)
        if isinstance(value, dict):
            return {
                name if name.isidentifier() else self.guarded(name): self.guarded(member)
                for name, member in value.items()
            }
        if isinstance(value, list):
            return [self.guarded(member) for member in value]
        return value

    def _hide(self, match: re.Match[str]) -> str:
        # Private-use characters and digits: no filter of a template changes them, no tokenizer knows them.
        placeholder = f"\ue000{self._nonce:018}{len(self._texts)}\ue001"
        self._texts[placeholder] = match.group()
        return placeholder

    def split(self, text: str) -> Iterator[tuple[str, bool]]:
        """Cut rendered text at placeholders: (text, whether it is users' own words that must stay words)."""
        if not self._texts:
            yield text, False
            return
        pattern = re.compile(f"\ue000{self._nonce:018}\\d+\ue001")
        position = 0
        for match in pattern.finditer(text):
            hidden = self._texts.get(match.group())
            if hidden is None:
                continue
            if match.start() > position:
                yield text[position : match.start()], False
            yield hidden, True
            position = match.end()
        if position < len(text):
            yield text[position:], False
