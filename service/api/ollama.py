"""Ollama's dialect: generating, chatting and embedding under `/api`, to the byte where clients look."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from service.api import generation
from service.api.documents import errors
from service.api.generation import VARIANT_HEADER
from service.api.ollama_answers import History, Writer, lines, nanoseconds, whole
from service.api.ollama_documents import LINES, OllamaError
from service.api.ollama_names import Meant, meant
from service.api.ollama_requests import (
    chat_request,
    common,
    droppable,
    effective_options,
    generate_request,
    without_oldest,
)
from service.api.ollama_shapes import Asking, OllamaChatBody, OllamaEmbedBody, OllamaEmbeddingsBody, OllamaGenerateBody
from service.api.responses import json_response
from service.api.services import Services, Use
from service.api.shapes import Shape
from service.api.streams import LineStream, unless_gone
from service.api.vectors import numbers
from service.domain.errors import InvalidParameter, NotSupported, QuantryError
from service.domain.generation import EmbeddingRequest, GenerationRequest
from service.workers.questions import Describe, Description, Infill, Tokenize, Tokens

router = APIRouter(tags=["ollama"])

_INFILL_RESERVED = 128  # tokens of the context left free for what fills a hole
_TURN_TOKENS = 32  # what a template writes around a turn, at most
_KEPT_FREE = 4  # of a conversation that is shortened, this part of the context is left to the answer


class OllamaVersion(Shape):
    """The version."""

    version: str


class OllamaAnswer(Shape):
    """An answer of `generate` or `chat`; of a stream, each line. Durations are nanoseconds."""

    model: str = Field(description="The name as it was sent.")
    created_at: str
    response: str | None = Field(None, description="Text; of `generate`.")
    message: dict[str, Any] | None = Field(None, description="Text, thinking and calls; of `chat`.")
    done: bool
    done_reason: str | None = Field(None, description="`stop`, `length`, `load` or `unload`.")


class OllamaEmbedded(Shape):
    """Vectors of length 1, in the order of the inputs."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Shape):
    """One vector, as the model gives it."""

    embedding: list[float]


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False, response_class=PlainTextResponse)
async def root() -> str:
    """What Ollama's tools ask for to see whether anybody is there."""
    return "Ollama is running"


@router.head("/api/version", include_in_schema=False)
@router.get("/api/version", summary="The version (Ollama)", responses=errors(model=OllamaError))
async def version(services: Use) -> OllamaVersion:
    """quantry's own."""
    return OllamaVersion(version=services.options.version)


@router.post(
    "/api/generate",
    summary="Complete a prompt (Ollama)",
    response_model=OllamaAnswer,
    responses={
        200: {"description": "The answer, in lines unless `stream` is false.", "content": LINES},
        **errors(404, 409, 503, 504, body=True, model=OllamaError),
    },
)
async def generate(body: OllamaGenerateBody, request: Request, services: Use) -> Response:
    """The prompt is what a user says to the model's chat template, or the text itself with `raw`."""
    body.check()
    found = await meant(services, body.model)
    writer = Writer(body.model, is_chat=False, report=body.alternatives is not None)
    if not body.prompt and not body.suffix:
        return await _load(services, request, found, body, writer)
    options = effective_options(body.options, found.preset)
    asked = generate_request(body, common(body, options, found.preset, found.variant), found.preset, found.variant)
    if body.suffix:
        asked = await _infilled(services, request, found, body, asked)
    remembers = not body.raw and not body.suffix and body.keep_alive_seconds != 0
    return await _answer(services, request, found, body, asked, writer, remembers=remembers)


@router.post(
    "/api/chat",
    summary="Chat (Ollama)",
    response_model=OllamaAnswer,
    responses={
        200: {"description": "The answer, in lines unless `stream` is false.", "content": LINES},
        **errors(404, 409, 503, 504, body=True, model=OllamaError),
    },
)
async def chat(body: OllamaChatBody, request: Request, services: Use) -> Response:
    """Fields as Ollama documents them. Without messages the model is loaded, with `keep_alive` 0 unloaded."""
    body.check()
    found = await meant(services, body.model)
    writer = Writer(body.model, is_chat=True, report=body.alternatives is not None)
    if not body.messages:
        return await _load(services, request, found, body, writer)
    options = effective_options(body.options, found.preset)
    asked = chat_request(body, common(body, options, found.preset, found.variant), found.preset)
    if body.truncate is not False and droppable(asked.messages):
        asked = await unless_gone(request.receive, _shortened(services, found, asked))
    return await _answer(services, request, found, body, asked, writer)


@router.post(
    "/api/embed",
    summary="Turn texts into vectors (Ollama)",
    response_model=OllamaEmbedded,
    responses=errors(404, 409, 503, 504, body=True, model=OllamaError),
)
async def embed(body: OllamaEmbedBody, request: Request, services: Use) -> Response:
    """One vector of length 1 for each input; an input that is too long is cut unless `truncate` is false."""
    began = time.monotonic()
    found = await meant(services, body.model)
    load_seconds = await unless_gone(request.receive, _loaded(services, found, body.keep_alive_seconds))
    vectors: list[list[float]] = []
    tokens = 0
    if body.inputs:
        asked = EmbeddingRequest(
            tuple(body.inputs), dimensions=body.dimensions or None, truncate=body.truncate is not False
        )
        answer = await unless_gone(request.receive, services.pool.embed(found.variant, asked))
        vectors = [numbers(vector) for vector in answer.vectors]
        tokens = answer.prompt_tokens
    return json_response(
        {
            "model": body.model,
            "embeddings": vectors,
            "total_duration": nanoseconds(time.monotonic() - began),
            "load_duration": nanoseconds(load_seconds),
            "prompt_eval_count": tokens,
        },
        headers={VARIANT_HEADER: found.variant.name},
    )


@router.post(
    "/api/embeddings",
    summary="Turn one text into a vector (Ollama, older)",
    response_model=OllamaEmbedding,
    responses=errors(404, 409, 503, 504, body=True, model=OllamaError),
)
async def embeddings(body: OllamaEmbeddingsBody, request: Request, services: Use) -> Response:
    """As `embed` for one text; the vector keeps its length."""
    found = await meant(services, body.model)
    await unless_gone(request.receive, _loaded(services, found, body.keep_alive_seconds))
    vector: list[float] = []
    if body.prompt:
        asked = EmbeddingRequest((body.prompt,), normalize=False)
        answer = await unless_gone(request.receive, services.pool.embed(found.variant, asked))
        vector = numbers(answer.vectors[0])
    return json_response({"embedding": vector}, headers={VARIANT_HEADER: found.variant.name})


async def _answer(
    services: Services,
    request: Request,
    found: Meant,
    body: Asking,
    asked: GenerationRequest,
    writer: Writer,
    *,
    remembers: bool = False,
) -> Response:
    """Lines, or one value. With `remembers` it ends with the ids of prompt and text, to be sent back as `context`."""
    variant = found.variant
    headers = {VARIANT_HEADER: variant.name}
    if body.think:
        await unless_gone(request.receive, _check_thinking(services, found, body.model))
    if body.keep_alive_seconds is not None:
        services.pool.keep(variant, body.keep_alive_seconds)

    async def history(text: str) -> list[int] | None:
        return await _history(services, found, asked, text)

    if body.streams:
        running = await generation.begin(services, variant, asked, request, grammar_field="format")
        kept: History | None = history if remembers else None
        return LineStream(
            lines(running, writer, kept),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    _, choices = await generation.whole(services, variant, asked, request, grammar_field="format")
    context = await history(choices[0].text) if remembers else None
    return json_response(whole(writer, choices[0], context), headers=headers)


async def _load(services: Services, request: Request, found: Meant, body: Asking, writer: Writer) -> Response:
    """Answer a request that asks for no text: the model is in memory afterwards, or with `keep_alive` 0 out of it."""
    headers = {VARIANT_HEADER: found.variant.name}
    if body.keep_alive_seconds == 0:
        await unless_gone(request.receive, services.pool.unload(found.variant))
        value = writer.without_text("unload")
    else:
        await unless_gone(request.receive, _loaded(services, found, body.keep_alive_seconds))
        value = writer.without_text("load")
    return Response(
        msgspec.json.encode(value) + b"\n" * body.streams,
        media_type=LineStream.media_type if body.streams else "application/json",
        headers=headers,
    )


async def _loaded(services: Services, found: Meant, keep_alive_seconds: float | None) -> float:
    """Have it in memory, for as long as asked; the seconds that took."""
    if keep_alive_seconds is not None:
        services.pool.keep(found.variant, keep_alive_seconds)
    if services.pool.is_loaded(found.variant.digest):
        return 0.0
    began = time.monotonic()
    await services.pool.load(found.variant)
    return time.monotonic() - began


async def _check_thinking(services: Services, found: Meant, name: str) -> None:
    """Raise NotSupported, in Ollama's words, when a model is asked to think that does not know how."""
    if found.preset.template is not None:
        return
    description = await services.pool.ask(found.variant, Describe())
    assert isinstance(description, Description)
    if not description.thinks:
        raise NotSupported(f'"{name}" does not support thinking; leave think out.', param="think")


async def _infilled(
    services: Services, request: Request, found: Meant, body: OllamaGenerateBody, asked: GenerationRequest
) -> GenerationRequest:
    """The request for what stands between `prompt` and `suffix`. Raises NotSupported for models that cannot."""
    reserved = asked.max_tokens or _INFILL_RESERVED
    question = Infill(prefix=body.prompt or "", suffix=body.suffix or "", reserved=reserved)
    try:
        tokens = await unless_gone(request.receive, services.pool.ask(found.variant, question))
    except (NotSupported, InvalidParameter) as error:
        raise NotSupported(f'"{body.model}" does not support insert; leave suffix out.', param="suffix") from error
    assert isinstance(tokens, Tokens)
    return replace(asked, prompt=None, messages=(), template=None, prompt_tokens=tokens.tokens)


async def _history(services: Services, found: Meant, asked: GenerationRequest, text: str) -> list[int] | None:
    """Token ids of the prompt and of the text after it; None when the worker is gone meanwhile."""
    try:
        prompt = await generation.rendered(services, found.variant, asked)
        answer = await services.pool.ask(found.variant, Tokenize((text,), parse_special=False))
    except QuantryError:
        return None
    assert isinstance(answer, Tokens)
    return [*prompt.tokens, *answer.tokens]


async def _shortened(services: Services, found: Meant, asked: GenerationRequest) -> GenerationRequest:
    """`asked` without its oldest messages, as few as possible, when all of them are too long for the context.

    The system's messages and the last one stay, whatever their length; then the engine refuses them.
    """
    wanted = max(asked.context_length or 0, services.options.context_length)
    context = min(wanted, found.variant.facts.shape.context_length or wanted)
    size = sum(len(message.content.encode()) + _TURN_TOKENS for message in asked.messages)
    if size < context:  # no token is shorter than a byte
        return asked
    room = context - context // _KEPT_FREE

    async def fits(count: int, limit: int) -> bool:
        messages = without_oldest(asked.messages, count)
        prompt = await generation.rendered(services, found.variant, replace(asked, messages=messages))
        return len(prompt.tokens) < limit

    try:
        if await fits(0, context):
            return asked
        low, high = 1, droppable(asked.messages)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if await fits(middle, room) else (middle + 1, high)
    except QuantryError:
        return asked  # the same error comes from the request itself
    return replace(asked, messages=without_oldest(asked.messages, low))
