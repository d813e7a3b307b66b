"""OpenAI's dialect: `/v1/chat/completions`, `/v1/completions` and `GET /v1/models`, to the byte where clients look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.api import generation
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Generation
from service.api.openai_shapes import DEFAULT_COMPLETION_TOKENS, ChatBody, CompletionBody
from service.api.responses import Dialect, error_body, error_from_event, json_response
from service.api.services import Services, Use
from service.api.shapes import Listing, Ref, Shape
from service.api.streams import DONE, EventStream, encode, sse
from service.domain.catalog import Variant
from service.domain.generation import Failed, Finished, GenerationRequest, Token, Usage

router = APIRouter(prefix="/v1", tags=["openai"])


class ModelShape(Shape):
    """A variant as OpenAI's clients list models."""

    id: str = Field(description="Canonical name of the variant.")
    object: str = "model"
    created: int = Field(description="Seconds since 1970.")
    owned_by: str


class CompletionShape(Shape):
    """OpenAI's `chat.completion` or `text_completion`."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


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
    body.check()
    asked = GenerationRequest(
        messages=body.domain_messages(),
        max_tokens=body.token_limit,
        sampling=body.sampling,
        stop=body.stops,
        ignore_eos=bool(body.ignore_eos),
    )
    return await _answer(services, request, body, asked, _CHAT)


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
    body.check()
    asked = GenerationRequest(
        prompt=body.text,
        max_tokens=body.max_tokens if body.max_tokens is not None else DEFAULT_COMPLETION_TOKENS,
        sampling=body.sampling,
        stop=body.stops,
        ignore_eos=bool(body.ignore_eos),
    )
    return await _answer(services, request, body, asked, _TEXT)


@router.get("/models", summary="List models (OpenAI)", responses=errors())
async def list_models(services: Use) -> Listing[ModelShape]:
    """Every variant that can be served, under its canonical name."""
    variants = await asyncio.to_thread(services.catalog.variants)
    return Listing[ModelShape](data=[_model_shape(variant) for variant in variants if not variant.corrupt])


@router.get("/models/{ref:path}", summary="Show one model (OpenAI)", responses=errors(404))
async def show_model(ref: Ref, services: Use) -> ModelShape:
    """The variant that a name reaches."""
    return _model_shape(await services.find(ref))


class _Kind:
    """What differs between the two routes: ids, object names, and how text sits in a choice."""

    def __init__(
        self,
        id_prefix: str,
        whole_object: str,
        chunk_object: str,
        *,
        whole_choice: Callable[[str], dict[str, Any]],
        chunk_choice: Callable[[str], dict[str, Any]],
        first_choice: dict[str, Any] | None,
        last_choice: dict[str, Any],
    ) -> None:
        self.id_prefix = id_prefix
        self.whole_object = whole_object
        self.chunk_object = chunk_object
        self.whole_choice = whole_choice
        self.chunk_choice = chunk_choice
        self.first_choice = first_choice
        self.last_choice = last_choice


_CHAT = _Kind(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chunk_choice=lambda text: {"delta": {"content": text}},
    first_choice={"delta": {"role": "assistant", "content": "", "refusal": None}},
    last_choice={"delta": {}},
)
_TEXT = _Kind(
    "cmpl-",
    "text_completion",
    "text_completion",
    whole_choice=lambda text: {"text": text},
    chunk_choice=lambda text: {"text": text},
    first_choice=None,
    last_choice={"text": ""},
)


async def _answer(
    services: Services, request: Request, body: ChatBody | CompletionBody, asked: GenerationRequest, kind: _Kind
) -> Response:
    variant = await services.servable(body.model)
    headers = {VARIANT_HEADER: variant.name}
    if body.stream:
        running = await generation.begin(services, variant, asked, request.receive)
        return EventStream(
            _frames(running, kind, include_usage=body.include_usage),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    running, text, finished = await generation.whole(services, variant, asked, request.receive)
    answer = {
        **_head(running, kind.id_prefix, kind.whole_object),
        "choices": [_choice(kind.whole_choice(text), finished.reason.value)],
        "usage": _usage(finished.usage),
    }
    return json_response(answer, headers=headers)


async def _frames(running: Generation, kind: _Kind, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    head = _head(running, kind.id_prefix, kind.chunk_object)
    # With include_usage every chunk but the last carries a usage of null.
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(choice: dict[str, Any], reason: str | None) -> bytes:
        return sse({**head, "choices": [_choice(choice, reason)], **tail})

    if kind.first_choice is not None:
        yield chunk(kind.first_choice, None)
    # All chunks of text are alike but for the text: encode the rest once.
    before, after = chunk(kind.chunk_choice(_MARK), None).split(encode(_MARK))
    async for event in running:
        match event:
            case Token():
                yield b"%s%s%s" % (before, encode(event.text), after)
            case Finished():
                yield chunk(kind.last_choice, event.reason.value)
                if include_usage:
                    yield sse({**head, "choices": [], "usage": _usage(event.usage)})
                yield DONE
            case Failed():
                yield sse(error_body(error_from_event(event), Dialect.OPENAI))


_MARK = "\x00text\x00"  # cannot occur elsewhere in a chunk: names and ids hold no control characters


def _head(running: Generation, id_prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": generation.new_id(id_prefix),
        "object": kind,
        "created": int(running.created_at.timestamp()),
        "model": running.variant.name,
        # Clients compare it to see whether the backend has changed; here it is the file that answered.
        "system_fingerprint": f"fp_{running.variant.digest.removeprefix('sha256:')[:12]}",
    }


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _model_shape(variant: Variant) -> ModelShape:
    created = int(datetime.fromisoformat(variant.created_at).timestamp())
    return ModelShape(id=variant.name, created=created, owned_by=variant.model.namespace)
