"""The body of `POST /v1/chat/completions`: what openai_shapes.py has, messages, tools and thinking. pydantic only."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from service.api.openai_messages import ChatMessage, domain_messages
from service.api.openai_reasoning import Budget, Effort, TemplateFields, reasoning_of
from service.api.openai_shapes import NO_GRAMMAR, NO_ITEMS, NULL, ONE_GRAMMAR, STREAM, Common, offered, refuse
from service.api.openai_tools import Choice, FunctionNameBody, Functions, Tools, choice_of, function_choice_of, tools_of
from service.api.shapes import MaxTokens, TopLogprobs
from service.domain.errors import InvalidParameter
from service.domain.generation import GenerationRequest, Grammar, Reasoning, Tool, ToolChoice, ToolMode

_TOKEN_LIMIT = ({"max_tokens": NULL}, {"max_completion_tokens": NULL})
_NONE: dict[str, Any] = {"anyOf": [NULL, NO_ITEMS]}
_SOME: dict[str, Any] = {"type": "array", "minItems": 1}
_FREE: dict[str, Any] = {"enum": ["none", "auto", None]}
_NO_OWN_GRAMMAR = {field: none for field, none in NO_GRAMMAR.items() if field != "response_format"}
# The fields for tools and those for the text's form, as they go together, and which of them must be there.
_FORMS: list[tuple[dict[str, Any], list[str]]] = [
    *(
        ({"tools": _NONE, "functions": _NONE, "tool_choice": _FREE, "function_call": _FREE, **grammar}, [])
        for grammar in ONE_GRAMMAR
    ),
    ({"tools": _SOME, "functions": _NONE, "function_call": NULL, **_NO_OWN_GRAMMAR}, ["tools"]),
    ({"tools": _NONE, "functions": _SOME, "tool_choice": NULL, **_NO_OWN_GRAMMAR}, ["functions"]),
]
_COMBINATIONS: list[Any] = [
    {"properties": {**stream["properties"], **limit, **form}, "required": [*stream.get("required", ()), *needed]}
    for stream, limit, (form, needed) in product(STREAM, _TOKEN_LIMIT, _FORMS)
]


class ChatBody(Common):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "smollm2:Q4_1", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
            ],
            "anyOf": _COMBINATIONS,
        }
    )

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: Functions | None = None
    function_call: Literal["none", "auto"] | FunctionNameBody | None = None
    reasoning_effort: Effort | None = None
    modalities: Annotated[list[str] | None, offered({"type": "array", "items": {"const": "text"}})] = None
    audio: Annotated[dict[str, Any] | None, offered()] = None
    # llama-server's, the last but one vLLM's
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None
    chat_template_kwargs: TemplateFields | None = None

    @property
    def token_limit(self) -> int | None:
        """Most tokens to generate; None until the context is full."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each drawn one; None for no report. `top_logprobs` alone will do."""
        wanted = bool(self.top_logprobs) if self.logprobs is None else self.logprobs
        return self.top_logprobs or 0 if wanted else None

    @property
    def reasoning(self) -> Reasoning:
        """How much to think."""
        budgets = (self.reasoning_budget_tokens, self.thinking_budget_tokens, self.thinking_token_budget)
        budget = next((budget for budget in budgets if budget is not None), None)
        return reasoning_of(
            self.reasoning_effort, budget, self.chat_template_kwargs, split=self.reasoning_format != "none"
        )

    @property
    def has_functions(self) -> bool:
        """Whether the tools are OpenAI's older `functions`, and calls are answered in their way."""
        return bool(self.functions)

    def request(self) -> GenerationRequest:
        """What is asked for. Raises NotSupported or InvalidParameter for what is not carried out or makes no sense."""
        self._check()
        tools, choice = self._tools()
        return self.drawn(
            GenerationRequest(
                messages=domain_messages(self.messages),
                max_tokens=self.token_limit,
                choices=self.n or 1,
                logprobs=self.alternatives,
                grammar=self._grammar(tools, choice),
                tools=tools,
                tool_choice=choice,
                reasoning=self.reasoning,
            )
        )

    def _check(self) -> None:
        self.check_common()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise InvalidParameter(
                "max_tokens and max_completion_tokens mean the same; send one of them.", param="max_tokens"
            )
        if self.tools and self.functions:
            raise InvalidParameter("tools and functions mean the same; send tools.", param="functions")
        if self.has_functions and self.tool_choice is not None:
            raise InvalidParameter("tool_choice is for tools; send function_call for functions.", param="tool_choice")
        if self.tools and self.function_call is not None:
            raise InvalidParameter("function_call is for functions; send tool_choice for tools.", param="function_call")
        refuse(
            {
                "modalities": any(kind != "text" for kind in self.modalities or ()),
                "audio": self.audio is not None,
            }
        )

    def _tools(self) -> tuple[tuple[Tool, ...], ToolChoice]:
        parallel = self.parallel_tool_calls is not False
        if self.functions or self.function_call is not None:
            return function_choice_of(tuple(function.tool for function in self.functions or ()), self.function_call)
        return choice_of(tools_of(self.tools or ()), self.tool_choice, parallel=parallel)

    def _grammar(self, tools: tuple[Tool, ...], choice: ToolChoice) -> Grammar | None:
        """The form of the text, which a call does not have."""
        found = self.constraint
        if not tools or found is None:
            return found
        if self.grammar_field != "response_format":
            raise InvalidParameter(
                f"{self.grammar_field} and tools both say what the text must look like; send one of them.",
                param=self.grammar_field,
            )
        return None if choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED) else found
