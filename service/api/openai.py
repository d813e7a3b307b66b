"""OpenAI's dialect: `/v1/chat/completions`, `/v1/completions` and `GET /v1/models`, to the byte where clients look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.api import generation
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Choice, Generation
from service.api.listing import parts_of
from service.api.openai_chat_shapes import ChatBody
from service.api.openai_choices import Chat, RawText
from service.api.openai_figures import fingerprint, usage_shape
from service.api.openai_shapes import CompletionBody
from service.api.path_parameters import Ref
from service.api.responses import Dialect, error_from_event, json_response
from service.api.services import Services, Use
from service.api.shapes import Listing, Shape
from service.api.streams import DONE, EventStream, encode, error_event, sse
from service.api.timings import timings_shape
from service.domain.catalog import Variant
from service.domain.generation import Failed, Finished, GenerationRequest, Thought, Token, ToolCallDelta
from service.store.rows import StoredModel

router = APIRouter(prefix="/v1", tags=["openai"])


class ModelShape(Shape):
    """A variant as OpenAI's clients list models."""

    id: str = Field(description="Canonical name of the variant.")
    object: str = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str


class ModelListing(Listing[ModelShape]):
    """Models."""


class CompletionShape(Shape):
    """OpenAI's `chat.completion` or `text_completion`."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]
    timings: dict[str, Any] = Field(description="As llama-server sends them.")


@router.post(
    "/chat/completions",
    summary="Chat with a variant (OpenAI)",
    response_model=CompletionShape,
    responses={
        200: {"description": "The answer; with `stream`, its chunks.", "content": EVENT_STREAM},
        **errors(404, 409, 429, 503, 504, body=True),
    },
)
async def chat_completions(body: ChatBody, request: Request, services: Use) -> Response:
    """Fields as OpenAI documents them; `model` is a variant's name as people type it."""
    return await _answer(services, request, body, body.request(), Chat(has_functions=body.has_functions))


@router.post(
    "/completions",
    summary="Complete a prompt (OpenAI)",
    response_model=CompletionShape,
    responses={
        200: {"description": "The text; with `stream`, its chunks.", "content": EVENT_STREAM},
        **errors(404, 409, 429, 503, 504, body=True),
    },
)
async def completions(body: CompletionBody, request: Request, services: Use) -> Response:
    """One prompt as raw text, without a template. `max_tokens` is 16 where none is sent, as with OpenAI."""
    return await _answer(services, request, body, body.request(), RawText())


@router.get("/models", summary="List models (OpenAI)", response_model=ModelListing, responses=errors())
async def list_models(services: Use) -> Response:
    """Every variant that can be served, under its canonical name."""

    def encoded(model: StoredModel) -> bytes:
        shapes = (_model_shape(variant) for variant in model.variants if not variant.corrupt)
        return b",".join(shape.model_dump_json().encode() for shape in shapes)

    def listed() -> bytes:
        models = services.catalog.models()
        parts = parts_of(services, "openai", models, lambda changed: ((encoded(model),) for model in changed))
        return b'{"object":"list","data":[%b]}' % b",".join(part for (part,) in parts if part)

    return Response(await asyncio.to_thread(listed), media_type="application/json")


@router.get("/models/{ref:path}", summary="Show one model (OpenAI)", responses=errors(404))
async def show_model(ref: Ref, services: Use) -> ModelShape:
    """The variant that a name reaches."""
    return _model_shape(await services.find(ref))


async def _answer(
    services: Services, request: Request, body: ChatBody | CompletionBody, asked: GenerationRequest, kind: RawText
) -> Response:
    variant = await services.servable(body.model)
    headers = {VARIANT_HEADER: variant.name}
    if body.stream:
        running = await generation.begin(services, variant, asked, request, grammar_field=body.grammar_field)
        return EventStream(
            _frames(running, asked, kind, include_usage=body.include_usage),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    running, choices = await generation.whole(services, variant, asked, request, grammar_field=body.grammar_field)
    usage, timings = generation.total([choice.end for choice in choices])
    answer = {
        **_head(running, kind.id_prefix, kind.whole_object),
        "choices": [_whole_choice(index, choice, asked, kind) for index, choice in enumerate(choices)],
        "usage": usage_shape(usage),
        "timings": timings_shape(usage, timings),
    }
    return json_response(answer, headers=headers)


def _whole_choice(index: int, choice: Choice, asked: GenerationRequest, kind: RawText) -> dict[str, Any]:
    report = None if asked.logprobs is None else kind.report(asked)(choice.logprobs)
    return _choice(index, kind.whole(choice), report, kind.reason(choice.end.reason))


async def _frames(
    running: Generation, asked: GenerationRequest, kind: RawText, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    head = _head(running, kind.id_prefix, kind.chunk_object)
    # With include_usage every chunk but the last carries a usage of null.
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(index: int, content: dict[str, Any], reason: str | None = None, report: Any = None) -> dict[str, Any]:
        return {**head, "choices": [_choice(index, content, report, reason)], **tail}

    def opening(index: int, *, is_call: bool = False) -> bytes:
        content = kind.opening(is_call=is_call)
        return b"" if content is None else sse(chunk(index, content))

    # Where a call may come first, how a choice begins is known only then.
    unopened = set(range(asked.choices)) if asked.tools else set()
    if not asked.tools and (openings := b"".join(map(opening, range(asked.choices)))):
        yield openings
    marked = kind.text(_MARK)
    if asked.logprobs is None:
        patterns = [sse(chunk(index, marked)).split(encode(_MARK)) for index in range(asked.choices)]
        reports = []
    else:
        patterns = [_three(sse(chunk(index, marked, report=_REPORT_MARK))) for index in range(asked.choices)]
        reports = [kind.report(asked) for _ in range(asked.choices)]
    ends: list[Finished] = []
    async for event in running:
        if unopened and not isinstance(event, Failed) and event.choice in unopened:
            unopened.remove(event.choice)
            yield opening(event.choice, is_call=isinstance(event, ToolCallDelta))
        match event:
            # All chunks of text are alike but for the text and its report: the rest was encoded once.
            case Token() if not reports:
                before, after = patterns[event.choice]
                yield b"%s%s%s" % (before, encode(event.text), after)
            case Token():
                before, between, after = patterns[event.choice]
                report = encode(reports[event.choice](event.logprobs))
                yield b"%s%s%s%s%s" % (before, encode(event.text), between, report, after)
            case Thought():
                yield sse(chunk(event.choice, kind.thought(event.text)))
            case ToolCallDelta():
                yield b"".join(sse(chunk(event.choice, content)) for content in kind.call(event))
            case Finished():
                ends.append(event)
                last = chunk(event.choice, kind.ending(), kind.reason(event.reason))
                if len(ends) < asked.choices:
                    yield sse(last)
                    continue
                usage, timings = generation.total(ends)
                figures = {"timings": timings_shape(usage, timings)}
                if include_usage:
                    yield sse(last) + sse({**head, "choices": [], "usage": usage_shape(usage), **figures})
                else:
                    yield sse({**last, **figures})
                yield DONE
            case Failed():
                yield error_event(error_from_event(event), Dialect.OPENAI)


# Neither can occur elsewhere in a chunk: names and ids hold no control characters.
_MARK = "\x00text\x00"
_REPORT_MARK = "\x00report\x00"


def _three(pattern: bytes) -> list[bytes]:
    """What is before the text, between it and its report, and after that."""
    before, rest = pattern.split(encode(_MARK))
    return [before, *rest.split(encode(_REPORT_MARK))]


def _head(running: Generation, id_prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": generation.new_id(id_prefix),
        "object": kind,
        "created": int(running.created_at.timestamp()),
        "model": running.variant.name,
        "system_fingerprint": fingerprint(running.variant),
    }


def _choice(index: int, content: dict[str, Any], report: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": report, "finish_reason": reason}


def _model_shape(variant: Variant) -> ModelShape:
    created = int(datetime.fromisoformat(variant.created_at).timestamp())
    return ModelShape(id=variant.name, created=created, owned_by=variant.model.namespace)
