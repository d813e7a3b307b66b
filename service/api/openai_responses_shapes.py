"""The body of `POST /v1/responses`. pydantic, and nothing else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, WithJsonSchema

from service.api.openai_items import AnyItem, ItemId
from service.api.openai_reasoning import Budget, Effort, TemplateFields, reasoning_of
from service.api.openai_shapes import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    NO_ITEMS,
    NULL,
    Lenient,
    Sampled,
    given,
    offered,
    refuse,
)
from service.api.openai_tools import MAX_TOOLS, ToolMoment, ToolName, chosen, tool_of
from service.api.shapes import JSON_OBJECT, JsonSchema, MaxTokens, TopLogprobs, schema_grammar
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import GenerationRequest, Grammar, Message, Reasoning, Tool, ToolChoice, ToolMode

LOGPROBS = "message.output_text.logprobs"

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16, json_schema_extra={"propertyNames": {"maxLength": 64}}),
]


class FunctionToolBody(Lenient):
    """A tool; only functions are carried out."""

    model_config = ConfigDict(json_schema_extra={"required": ["type", "name"]})

    type: Annotated[str, WithJsonSchema({"const": "function"})]
    name: Annotated[ToolName | None, WithJsonSchema({"type": "string", "pattern": "^[A-Za-z0-9_./:-]{1,128}$"})] = None
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    def tool(self, index: int) -> Tool:
        """As a domain value; NotSupported for one that is no function."""
        if self.type != "function":
            raise NotSupported(
                "Only tools of the type function are carried out by this server; leave the others out.",
                param=f"tools[{index}].type",
            )
        if self.name is None:
            param = f"tools[{index}].name"
            raise InvalidParameter(f"{param} is missing; send the function's name.", param=param)
        return tool_of(self.name, self.description, self.parameters, strict=self.strict)


class FunctionChoiceBody(Lenient):
    """The one function that must be called."""

    type: Literal["function"]
    name: ToolName


class AllowedToolsBody(Lenient):
    """Some of the tools, and whether one of them must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoiceBody], Field(min_length=1, max_length=MAX_TOOLS)]


class FormatBody(Lenient):
    """What the text must look like."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"properties": {"type": {"enum": ["text", "json_object"]}}},
                {
                    "properties": {"type": {"const": "json_schema"}, "schema": {"type": "object"}},
                    "required": ["schema"],
                },
            ]
        }
    )

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    json_schema: Annotated[JsonSchema | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextBody(Lenient):
    """How the text is to be."""

    format: FormatBody | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponseReasoningBody(Lenient):
    """How much to think. There are no summaries: the thinking itself is in the answer."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


_NO_TOOLS: dict[str, Any] = {
    "properties": {"tools": {"anyOf": [NULL, NO_ITEMS]}, "tool_choice": {"enum": ["none", "auto", None]}}
}
_TOOLS: dict[str, Any] = {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]}


class ResponsesBody(Sampled):
    """`POST /v1/responses`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "smollm2:Q4_1", "input": "Hello", "max_output_tokens": 32}],
            "anyOf": [_NO_TOOLS, _TOOLS],
        }
    )

    input: str | Annotated[list[AnyItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: MaxTokens | None = None
    previous_response_id: ItemId | None = None
    store: bool | None = None
    include: list[str] | None = None
    metadata: Metadata | None = None
    text: TextBody | None = None
    reasoning: ResponseReasoningBody | None = None
    tools: Annotated[list[FunctionToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolMoment | FunctionChoiceBody | AllowedToolsBody | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: TopLogprobs | None = None
    background: Annotated[bool | None, offered({"const": False})] = None
    conversation: Annotated[Any, offered()] = None
    prompt: Annotated[Any, offered()] = None
    truncation: Annotated[str | None, offered({"const": "disabled"})] = None
    # llama-server's, the last but one vLLM's
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None
    chat_template_kwargs: TemplateFields | None = None

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens to report beside each drawn one; None for no report."""
        return self.top_logprobs or 0 if self.top_logprobs or LOGPROBS in (self.include or ()) else None

    @property
    def thinking(self) -> Reasoning:
        """How much to think."""
        budgets = (self.reasoning_budget_tokens, self.thinking_budget_tokens, self.thinking_token_budget)
        budget = next((budget for budget in budgets if budget is not None), None)
        return reasoning_of(self.reasoning.effort if self.reasoning else None, budget, self.chat_template_kwargs)

    def check(self) -> None:
        """Raise NotSupported or InvalidParameter for what this request asks for and does not get."""
        refuse(
            {
                "background": bool(self.background),
                "conversation": self.conversation is not None,
                "prompt": self.prompt is not None,
                "truncation": self.truncation not in (None, "disabled"),
            }
        )
        form = self.text.format if self.text else None
        if form is not None and form.type == "json_schema" and form.json_schema is None:
            param = "text.format.schema"
            raise InvalidParameter(f"{param} is missing; send the schema, or the type json_object.", param=param)

    def request(self, messages: tuple[Message, ...]) -> GenerationRequest:
        """What is asked for, given the whole conversation. Raises as `check`, and for tools that make no sense."""
        tools, choice = self._tools()
        grammar = self._grammar()
        return self.drawn(
            GenerationRequest(
                messages=messages,
                max_tokens=self.max_output_tokens,
                logprobs=self.alternatives,
                # A call that must come does not have the form of the text.
                grammar=None if tools and choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED) else grammar,
                tools=tools,
                tool_choice=choice,
                reasoning=self.thinking,
            )
        )

    def echoed(self) -> dict[str, Any]:
        """The fields that a response repeats, with OpenAI's defaults for what was not sent."""
        form = (self.text and self.text.format) or FormatBody(type="text")
        choice = self.tool_choice
        return {
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "reasoning": {
                "effort": self.reasoning and self.reasoning.effort,
                "summary": self.reasoning and self.reasoning.summary,
            },
            "service_tier": "default",
            "store": self.store is not False,
            "temperature": given(self.temperature, DEFAULT_TEMPERATURE),
            "text": {
                "format": form.model_dump(by_alias=True, exclude_none=True),
                "verbosity": (self.text and self.text.verbosity) or "medium",
            },
            "tool_choice": choice.model_dump() if isinstance(choice, Lenient) else choice or "auto",
            "tools": [{**tool.model_dump(), "strict": bool(tool.strict)} for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": given(self.top_p, DEFAULT_TOP_P),
            "truncation": "disabled",
        }

    def _tools(self) -> tuple[tuple[Tool, ...], ToolChoice]:
        tools = tuple(tool.tool(index) for index, tool in enumerate(self.tools or ()))
        parallel = self.parallel_tool_calls is not False
        choice = self.tool_choice
        if isinstance(choice, FunctionChoiceBody):
            return chosen(tools, ToolMode.NAMED, [choice.name], parallel=parallel)
        if isinstance(choice, AllowedToolsBody):
            return chosen(tools, ToolMode(choice.mode), [tool.name for tool in choice.tools], parallel=parallel)
        return chosen(tools, ToolMode(choice or "auto"), None, parallel=parallel)

    def _grammar(self) -> Grammar | None:
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        return schema_grammar(form.json_schema if form.json_schema is not None else JSON_OBJECT)
