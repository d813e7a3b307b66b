"""Anthropic's dialect: `/v1/messages` and `/v1/messages/count_tokens`, to the byte where clients look."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import anthropic_events, generation
from service.api.anthropic_events import Blocks
from service.api.anthropic_request import generation_request, prompt_request
from service.api.anthropic_shapes import AnthropicError, CountBody, CountShape, MessagesBody, MessageShape
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Generation
from service.api.responses import Dialect, error_from_event, json_response
from service.api.services import Use
from service.api.streams import EventStream, error_event, sse, unless_gone
from service.domain.generation import Failed, Finished, GenerationRequest, Usage

router = APIRouter(prefix="/v1", tags=["anthropic"])

_GRAMMAR_FIELD = "output_config.format"


@router.post(
    "/messages",
    summary="Answer a conversation (Anthropic)",
    response_model=MessageShape,
    responses={
        200: {"description": "The message; with `stream`, its events.", "content": EVENT_STREAM},
        **errors(404, 409, 429, 503, 504, body=True, model=AnthropicError),
    },
)
async def messages(body: MessagesBody, request: Request, services: Use) -> Response:
    """Fields as Anthropic documents them; `model` is a variant's name as people type it."""
    asked = generation_request(body)
    shows_thinking = body.thinking is None or body.thinking.display != "omitted"
    variant = await services.servable(body.model)
    headers = {VARIANT_HEADER: variant.name}
    if body.stream:
        running = await generation.begin(services, variant, asked, request, grammar_field=_GRAMMAR_FIELD)
        return EventStream(
            _frames(running, asked, shows_thinking=shows_thinking),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    running, (choice,) = await generation.whole(services, variant, asked, request, grammar_field=_GRAMMAR_FIELD)
    answer = {
        **_head(running),
        "content": anthropic_events.content(choice, shows_thinking=shows_thinking),
        **anthropic_events.stop(choice.end, asked.max_tokens),
        "usage": anthropic_events.usage(choice.end.usage),
    }
    return json_response(answer, headers=headers)


@router.post(
    "/messages/count_tokens",
    summary="Count the tokens of a conversation (Anthropic)",
    response_model=CountShape,
    responses=errors(404, 409, 429, 503, 504, body=True, model=AnthropicError),
)
async def count_tokens(body: CountBody, request: Request, services: Use) -> Response:
    """How many tokens the prompt has, template and tools included. Loads the variant where it is not in memory."""
    asked = prompt_request(body)
    variant = await services.servable(body.model)
    rendered = await unless_gone(request.receive, generation.rendered(services, variant, asked))
    return json_response({"input_tokens": len(rendered.tokens)}, headers={VARIANT_HEADER: variant.name})


async def _frames(
    running: Generation, asked: GenerationRequest, *, shows_thinking: bool
) -> AsyncGenerator[bytes, None]:
    blocks = Blocks(shows_thinking=shows_thinking)
    # What came from the cache is known at the end.
    begun = anthropic_events.usage(Usage(running.prompt_tokens, 0))
    message = {**_head(running), "content": [], "stop_reason": None, "stop_sequence": None, "usage": begun}
    yield _event({"type": "message_start", "message": message}) + _event({"type": "ping"})
    async for event in running:
        match event:
            case Finished():
                ended = anthropic_events.stop(event, asked.max_tokens)
                figures = anthropic_events.usage(event.usage)
                yield b"".join(map(_event, blocks.close()))
                yield _event({"type": "message_delta", "delta": ended, "usage": figures})
                yield _event({"type": "message_stop"})
            case Failed():
                yield error_event(error_from_event(event), Dialect.ANTHROPIC)
            case _:
                frames = b"".join(map(_event, blocks.push(event)))
                if frames:
                    yield frames


def _event(event: dict[str, Any]) -> bytes:
    return sse(event, event=event["type"])


def _head(running: Generation) -> dict[str, Any]:
    return {
        "id": generation.new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": running.variant.name,
    }
