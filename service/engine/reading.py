"""How the answer to a request is to be read and what is forced on it; side thread of the worker.

Joins what the template says (formats.py), what the request asks, and what the model's vocabulary has as single tokens.
"""

from __future__ import annotations

from service.domain.generation import GenerationRequest, GrammarKind, ToolMode
from service.engine.answer import Reading
from service.engine.conversation import parameters
from service.engine.formats import CALL_FORMATS, GENERIC, THINKING, CallFormat, Thinking
from service.engine.grammar import JSON_OPTIONS, Constraint, GrammarCompiler
from service.engine.prompt import Prompt, PromptRenderer
from service.engine.tool_grammar import tool_grammar
from service.llama.model import Model


class Reader:
    """Makes readings and constraints for the requests to one model."""

    def __init__(self, model: Model, renderer: PromptRenderer, grammars: GrammarCompiler) -> None:
        """Looks up the markers of all formats, as requests may bring templates; to be made before the engine runs."""
        self._model = model
        self._grammars = grammars
        self._control: dict[str, tuple[int, bytes]] = {}  # tokens which have no text of their own
        self._special: dict[str, int] = {}  # tokens that llguidance knows by their ids only
        markers = [marker for calls in (GENERIC, *(known for _, _, known in CALL_FORMATS)) for marker in calls.markers]
        markers += [marker for thinking in THINKING for marker in thinking.markers]
        for marker in dict.fromkeys(markers):
            tokens = model.tokenize(marker, add_special=False, parse_special=True)
            if len(tokens) != 1 or not renderer.is_special(marker):
                continue
            token = tokens[0]
            is_control = not model.piece(token)
            if is_control:
                self._control[marker] = token, model.piece(token, special=True)
            if is_control or model.is_end(token) or (marker.startswith("<") and marker.endswith(">")):
                self._special[marker] = token

    def reading(self, request: GenerationRequest, prompt: Prompt) -> Reading | None:
        """How to tell the parts of the answer apart; None where it has none."""
        if not request.messages:
            return None
        thinking = prompt.thinking
        calls = self._calls(request, prompt)
        if thinking is None and calls is None:
            return None
        wants = request.reasoning
        markers = (() if calls is None else calls.markers) + (() if thinking is None else thinking.markers)
        close, before_answer, begin = self._forced(thinking, request)
        return Reading(
            thinking=thinking,
            opens_thought=prompt.opens_thought,
            splits=wants.split,
            calls=calls,
            tools={} if calls is None else {tool.name: _properties(parameters(tool)) for tool in request.tools},
            most_calls=None if request.tool_choice.parallel else 1,
            shown=dict(self._control[marker] for marker in markers if marker in self._control),
            start=None if thinking is None or wants.enabled is False else self._special.get(thinking.start),
            close=close,
            after=before_answer,
            max_thinking_tokens=wants.max_tokens,
            begin=begin,
        )

    def _forced(
        self, thinking: Thinking | None, request: GenerationRequest
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Tokens that end the thinking early; that stand between it and an answer with a grammar; that begin such."""
        if thinking is None:
            return (), (), ()
        header = self._tokens(thinking.answer_header) if request.grammar is not None else ()
        begin: tuple[int, ...] = ()
        if thinking.channels:
            begin = header if request.reasoning.enabled is False else self._tokens(thinking.start)
        return self._tokens(thinking.close), self._tokens(thinking.after) + header, begin

    def _calls(self, request: GenerationRequest, prompt: Prompt) -> CallFormat | None:
        """How calls are written, where any may come. Beside a form of the text only where they can be told apart."""
        if request.grammar is None:
            return prompt.calls
        channels = prompt.thinking is not None and prompt.thinking.channels
        return prompt.calls if request.grammar.kind is GrammarKind.JSON_SCHEMA and not channels else None

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._model.tokenize(text, add_special=False, parse_special=True))

    def constraints(self, request: GenerationRequest, prompt: Prompt) -> tuple[Constraint | None, Constraint | None]:
        """What the answer is held to, and what a call is held to that the model begins by itself.

        Raises InvalidGrammar, and InvalidParameter for a schema that is none.
        """
        if request.grammar is not None:
            constraint = self._grammars.compile(request.grammar)
            calls = self._calls(request, prompt)
            if calls is None:
                return constraint, None
            # A call does not have the form of the text, and one that must come leaves no room for a text.
            answer = request.grammar.source if request.tool_choice.mode is ToolMode.AUTO else None
            either = tool_grammar(
                calls, request.tools, request.tool_choice, self._special.get, JSON_OPTIONS, answer=answer
            )
            return self._grammars.compile(either), None
        choice = request.tool_choice
        is_free = choice.mode is ToolMode.AUTO
        if prompt.calls is None or (is_free and not any(tool.strict for tool in request.tools)):
            return None, None
        grammar = tool_grammar(prompt.calls, request.tools, choice, self._special.get, JSON_OPTIONS)
        constraint = self._grammars.compile(grammar)
        return (None, constraint) if is_free else (constraint, None)


def _properties(schema: dict[str, object]) -> dict[str, object]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}
