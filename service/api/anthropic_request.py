"""From Anthropic's words to a GenerationRequest. Pure; raises NotSupported and InvalidParameter, naming the field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from service.api.anthropic_shapes import (
    AnthropicBlockBody,
    AnthropicToolBody,
    AnthropicTurnBody,
    CountBody,
    MessagesBody,
    ThinkingBody,
)
from service.api.sampling import sampling_params
from service.api.shapes import schema_grammar
from service.domain.errors import InvalidParameter, NotSupported
from service.domain.generation import (
    GenerationRequest,
    Grammar,
    Message,
    Reasoning,
    SamplingParams,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)

T = TypeVar("T")

DEFAULT_TEMPERATURE = 1.0
DEFAULT_TOP_P = 1.0

_EFFORTS = {"xhigh": "high", "max": "high"}  # templates know three
_MODES = {"auto": ToolMode.AUTO, "any": ToolMode.REQUIRED, "tool": ToolMode.NAMED, "none": ToolMode.NONE}

# A stamp that changes with every request of one client and says nothing to a model: it would spoil the prefix cache.
_BILLING_STAMP = re.compile(r"^x-anthropic-billing-header:[^\n]*?cch=[0-9a-f]{5};\s*")


def generation_request(body: MessagesBody) -> GenerationRequest:
    """What a body of `/v1/messages` asks for."""
    if body.thinking is not None and (body.thinking.budget_tokens or 0) >= body.max_tokens:
        param = "thinking.budget_tokens"
        raise InvalidParameter(f"{param} must be less than max_tokens; raise max_tokens.", param=param)
    return replace(
        prompt_request(body),
        max_tokens=body.max_tokens,
        sampling=sampling_params(
            body, SamplingParams(temperature=DEFAULT_TEMPERATURE, top_p=DEFAULT_TOP_P), seed=body.seed
        ),
        stop=tuple(body.stop_sequences or ()),
        context_length=body.context_length,
        cache_prompt=body.cache_prompt is not False,
    )


def prompt_request(body: CountBody) -> GenerationRequest:
    """What makes up the prompt, and the form of the answer; the rest is as it is by default."""
    messages = [*_system(body), *_conversation(body.messages)]
    effort = None if body.output_config is None else body.output_config.effort
    last = messages[-1]
    return GenerationRequest(
        messages=tuple(messages),
        continues=last.role == "assistant" and not last.tool_calls,
        grammar=_grammar(body),
        tools=tuple(_tool(index, tool) for index, tool in enumerate(body.tools or ())),
        tool_choice=_tool_choice(body),
        reasoning=_reasoning(body.thinking, effort),
    )


def _system(body: CountBody) -> Iterator[Message]:
    if body.system is None:
        return
    parts = [body.system] if isinstance(body.system, str) else _texts(body.system, "system")
    stripped = (_BILLING_STAMP.sub("", part) for part in parts)
    text = "\n".join(part for part in stripped if part)
    if text:
        yield Message("system", text)


def _conversation(turns: Sequence[AnthropicTurnBody]) -> list[Message]:
    """The turns; those of one role that follow each other become one, as Anthropic's servers have it."""
    found: list[Message] = []
    for index, turn in enumerate(turns):
        here = f"messages[{index}].content"
        if isinstance(turn.content, str):
            made = [Message(turn.role, turn.content)]
        elif turn.role == "assistant":
            made = [_answer(turn.content, here)]
        elif turn.role == "user":
            made = list(_question(turn.content, here))
        else:
            made = [Message("system", "\n".join(_texts(turn.content, here)))]
        for message in made:
            if found and found[-1].role == message.role != "tool":
                found[-1] = _joined(found[-1], message)
            else:
                found.append(message)
    if not found:
        raise InvalidParameter("messages: there is no text in them; send some.", param="messages")
    return found


def _joined(one: Message, other: Message) -> Message:
    return replace(
        one,
        content="\n".join(text for text in (one.content, other.content) if text),
        reasoning="\n".join(text for text in (one.reasoning, other.reasoning) if text) or None,
        tool_calls=one.tool_calls + other.tool_calls,
    )


def _question(blocks: Sequence[AnthropicBlockBody], here: str) -> Iterator[Message]:
    """A user's turn: results of tools and texts, in their order."""
    texts: list[str] = []
    for index, block in enumerate(blocks):
        at = f"{here}[{index}]"
        if block.type != "tool_result":
            texts.append(_text(block, at))
            continue
        if texts:
            yield Message("user", "\n".join(texts))
            texts = []
        content = block.content or ""
        result = content if isinstance(content, str) else "\n".join(_texts(content, f"{at}.content"))
        if block.is_error:
            result = f"Error: {result}"
        yield Message("tool", result, tool_call_id=_needed(block.tool_use_id, f"{at}.tool_use_id"))
    if texts:
        yield Message("user", "\n".join(texts))


def _answer(blocks: Sequence[AnthropicBlockBody], here: str) -> Message:
    """The assistant's turn: thinking, texts, calls."""
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[ToolCall] = []
    for index, block in enumerate(blocks):
        at = f"{here}[{index}]"
        if block.type == "thinking":
            thoughts.append(_needed(block.thinking, f"{at}.thinking"))
        elif block.type == "tool_use":
            call_id, name = _needed(block.id, f"{at}.id"), _needed(block.name, f"{at}.name")
            given = _needed(block.input, f"{at}.input")
            calls.append(ToolCall(call_id, name, json.dumps(given, ensure_ascii=False)))
        elif block.type != "redacted_thinking":
            texts.append(_text(block, at))
    reasoning = "\n".join(thoughts)
    return Message("assistant", "\n".join(texts), reasoning=reasoning or None, tool_calls=tuple(calls))


def _texts(blocks: Sequence[AnthropicBlockBody], here: str) -> list[str]:
    return [_text(block, f"{here}[{index}]") for index, block in enumerate(blocks)]


def _text(block: AnthropicBlockBody, at: str) -> str:
    """The words of a block that has some; NotSupported for images, files and what Anthropic's servers made."""
    source = block.source or {}
    if block.type == "text":
        return _needed(block.text, f"{at}.text")
    if block.type == "document" and source.get("type") == "text" and isinstance(source.get("data"), str):
        data: str = source["data"]
        return f"{block.title}\n{data}" if block.title else data
    raise NotSupported(
        f"{at}: only text is carried out by this server, and this is of the type {block.type!r}; leave it out.",
        param=at,
    )


def _needed(value: T | None, param: str) -> T:
    if value is None:
        raise InvalidParameter(f"The field {param!r} is missing; send it.", param=param)
    return value


def _tool(index: int, tool: AnthropicToolBody) -> Tool:
    here = f"tools[{index}]"
    if tool.type not in (None, "custom"):
        raise NotSupported(
            f"{here}: tools of Anthropic's own are not carried out by this server; send one with an input_schema.",
            param=f"{here}.type",
        )
    if tool.input_schema is None:
        param = f"{here}.input_schema"
        raise InvalidParameter(f"The field {param!r} is missing; send the schema of the tool's input.", param=param)
    schema = json.dumps(tool.input_schema, ensure_ascii=False, separators=(",", ":"))
    return Tool(tool.name, tool.description or "", schema, strict=bool(tool.strict))


def _tool_choice(body: CountBody) -> ToolChoice:
    wanted = body.tool_choice
    if wanted is None:
        return ToolChoice()
    mode = _MODES[wanted.type]
    names = {tool.name for tool in body.tools or ()}
    if mode is ToolMode.REQUIRED and not names:
        raise InvalidParameter("tool_choice asks for a call and there are no tools; send some.", param="tool_choice")
    if mode is ToolMode.NAMED and wanted.name not in names:
        raise InvalidParameter("tool_choice.name is none of the tools; send that tool too.", param="tool_choice.name")
    return ToolChoice(mode, wanted.name if mode is ToolMode.NAMED else None, not wanted.disable_parallel_tool_use)


def _reasoning(thinking: ThinkingBody | None, effort: str | None) -> Reasoning:
    effort = _EFFORTS.get(effort or "", effort)
    if thinking is None or thinking.type == "adaptive":
        return Reasoning(effort=effort)
    if thinking.type == "disabled":
        return Reasoning(enabled=False)
    if thinking.budget_tokens is None:
        param = "thinking.budget_tokens"
        raise InvalidParameter(f"The field {param!r} is missing; send it, or the type adaptive.", param=param)
    return Reasoning(enabled=True, max_tokens=thinking.budget_tokens, effort=effort)


def _grammar(body: CountBody) -> Grammar | None:
    if body.output_config is None or body.output_config.format is None:
        return None
    if body.tool_choice is not None and body.tool_choice.type in ("any", "tool"):
        return None  # a call has a schema of its own
    return schema_grammar(body.output_config.format.json_schema)
