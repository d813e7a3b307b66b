"""`POST /v1/generate`: text from one variant."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import generation, logprobs
from service.api.adapter_shapes import adapter_uses
from service.api.documents import EVENT_STREAM, errors
from service.api.generate_shapes import ChoicesShape, GenerateBody, GenerationShape, TimingsShape, UsageShape
from service.api.generate_tools import MessageBody, tool_choice
from service.api.generation import VARIANT_HEADER, Choice, Generation
from service.api.responses import Dialect, error_from_event, json_response
from service.api.sampling import sampling_params
from service.api.services import Use
from service.api.shapes import JSON_OBJECT, schema_grammar
from service.api.streams import EventStream, encode, error_event, sse
from service.domain.generation import (
    Failed,
    Finished,
    GenerationRequest,
    Grammar,
    GrammarKind,
    Message,
    Reasoning,
    SamplingParams,
    Thought,
    Timings,
    Token,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolMode,
    Usage,
)

router = APIRouter(prefix="/v1", tags=["native"])


@router.post(
    "/generate",
    summary="Generate text with one variant",
    response_model=GenerationShape | ChoicesShape,
    responses={
        200: {"description": "The text; with `stream`, its events.", "content": EVENT_STREAM},
        **errors(404, 409, 429, 503, 504, body=True),
    },
)
async def generate(body: GenerateBody, request: Request, services: Use) -> Response:
    """One JSON answer, or with `stream` server-sent events: `token` {"text"}, ..., then one `done` or `error`.

    Thinking comes as `thought` {"text"}, and a call of a tool piece by piece as `tool_call` {"call", "arguments"}, the
    first piece with the call's `id` and `name`.

    With `n` above 1 the answer has `choices`; in a stream each event has its `index`, and each choice its `done`.
    A client that hangs up cancels its generation.
    """
    variant = await services.servable(body.model)
    asked = generation_request(body)
    headers = {VARIANT_HEADER: variant.name}
    if body.stream:
        running = await generation.begin(services, variant, asked, request, grammar_field=body.grammar_field)
        return EventStream(
            _frames(running, with_logprobs=asked.logprobs is not None),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    running, choices = await generation.whole(services, variant, asked, request, grammar_field=body.grammar_field)
    texts = [_text(choice, with_logprobs=asked.logprobs is not None) for choice in choices]
    answer: dict[str, Any] = {
        "id": generation.new_id("gen-"),
        "object": "generation",
        "model": variant.name,
        "created_at": running.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    if len(texts) == 1:
        answer |= texts[0]
    else:
        usage, timings = generation.total([choice.end for choice in choices])
        answer["choices"] = [{"index": index, **text} for index, text in enumerate(texts)]
        answer |= _figures(usage, timings)
    return json_response(answer, headers=headers)


def generation_request(body: GenerateBody) -> GenerationRequest:
    """The body as a domain value; InvalidParameter for a call that must come of a tool that is not there."""
    choice = tool_choice(body.tool_choice, [tool.name for tool in body.tools], parallel=body.parallel_tool_calls)
    return GenerationRequest(
        prompt=body.prompt,
        messages=tuple(_message(turn) for turn in body.messages or ()),
        max_tokens=body.max_tokens,
        sampling=sampling_params(
            body,
            SamplingParams(),
            seed=None if body.seed == -1 else body.seed,
            logit_bias=tuple((int(token), bias) for token, bias in body.logit_bias.items()),
        ),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop),
        ignore_eos=body.ignore_eos,
        parse_special=body.parse_special,
        choices=body.n,
        logprobs=body.logprobs,
        # A call that must come does not have the form of the text.
        grammar=None if choice.mode in (ToolMode.REQUIRED, ToolMode.NAMED) else _grammar(body),
        tools=tuple(
            Tool(tool.name, tool.description, schema_grammar(tool.parameters).source, tool.strict)
            for tool in body.tools
        ),
        tool_choice=choice,
        reasoning=Reasoning() if body.reasoning is None else Reasoning(**body.reasoning.model_dump()),
        speculate=body.speculate,
        draft=body.draft,
        context_length=body.context_length,
        cache_prompt=body.cache_prompt,
        adapters=adapter_uses(body.adapters),
    )


def usage_shape(usage: Usage) -> UsageShape:
    """Tokens with their sum."""
    return UsageShape(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        draft_tokens=usage.draft_tokens,
        accepted_tokens=usage.accepted_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def timings_shape(timings: Timings, usage: Usage) -> TimingsShape:
    """Seconds with the rates that follow from them."""
    return TimingsShape(
        queue_seconds=timings.queue_seconds,
        load_seconds=timings.load_seconds,
        prompt_seconds=timings.prompt_seconds,
        generation_seconds=timings.generation_seconds,
        prompt_tokens_per_second=_rate(usage.prompt_tokens - usage.cached_tokens, timings.prompt_seconds),
        # The clock starts at the first token, so that one is not among those that took the time.
        generation_tokens_per_second=_rate(usage.completion_tokens - 1, timings.generation_seconds),
    )


async def _frames(running: Generation, *, with_logprobs: bool) -> AsyncGenerator[bytes, None]:
    # Only a stream of several choices says which one an event belongs to.
    indices: list[dict[str, Any]] = [{"index": index} for index in range(running.choices)]
    if running.choices == 1:
        indices = [{}]
    # All tokens of a choice are alike but for their text: encode the rest once.
    before = [sse({**index, "text": ""}, event="token").removesuffix(_AFTER_NO_TEXT) for index in indices]
    async for event in running:
        match event:
            case Token():
                text = encode(event.text)
                if with_logprobs:
                    text += b',"logprobs":' + encode(logprobs.entries(event.logprobs))
                yield b"%s%s}\n\n" % (before[event.choice], text)
            case Thought():
                yield sse({**indices[event.choice], "text": event.text}, event="thought")
            case ToolCallDelta():
                head = {} if event.name is None else {"id": event.id, "name": event.name}
                piece = {"call": event.index, **head, "arguments": event.arguments}
                yield sse({**indices[event.choice], **piece}, event="tool_call")
            case Finished():
                yield sse({**indices[event.choice], **_end(event)}, event="done")
            case Failed():
                yield error_event(error_from_event(event), Dialect.NATIVE)


_AFTER_NO_TEXT = b'""}\n\n'


def _message(turn: MessageBody) -> Message:
    return Message(
        turn.role,
        turn.content,
        reasoning=turn.reasoning,
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in turn.tool_calls or ()),
        tool_call_id=turn.tool_call_id,
        name=turn.name,
    )


def _grammar(body: GenerateBody) -> Grammar | None:
    if body.format is not None:
        return schema_grammar(JSON_OBJECT if body.format == "json" else body.format)
    return None if body.grammar is None else Grammar(GrammarKind(body.grammar.kind), body.grammar.source)


def _text(choice: Choice, *, with_logprobs: bool) -> dict[str, Any]:
    shown = logprobs.entries(choice.logprobs) if with_logprobs else None
    calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in choice.tool_calls]
    return {
        "text": choice.text,
        "reasoning": choice.reasoning or None,
        "tool_calls": calls or None,
        "logprobs": shown,
        **_end(choice.end),
    }


def _end(finished: Finished) -> dict[str, Any]:
    return {
        "finish_reason": finished.reason.value,
        "stop": finished.stop,
        **_figures(finished.usage, finished.timings),
    }


def _figures(usage: Usage, timings: Timings) -> dict[str, Any]:
    return {
        "usage": usage_shape(usage).model_dump(),
        "timings": timings_shape(timings, usage).model_dump(),
    }


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None
