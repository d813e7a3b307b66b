"""OpenAI's dialect: `/v1/chat/completions`, `/v1/completions` and `GET /v1/models`, to the byte where clients look."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from service.api import generation, logprobs
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Choice, Generation
from service.api.openai_shapes import DEFAULT_COMPLETION_TOKENS, ChatBody, CompletionBody
from service.api.responses import Dialect, error_from_event, json_response
from service.api.services import Services, Use
from service.api.shapes import Listing, Ref, Shape
from service.api.streams import DONE, EventStream, encode, error_event, sse
from service.domain.catalog import Variant
from service.domain.generation import Failed, Finished, GenerationRequest, Timings, Token, TokenLogprob, Usage

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
    body.check()
    asked = GenerationRequest(messages=body.domain_messages(), max_tokens=body.token_limit)
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


# Makes the `logprobs` of one choice from the tokens of an event; called for all of them in turn.
Report = Callable[[Sequence[TokenLogprob]], Any]


class _Kind:
    """What differs between the two routes: ids, object names, how text and log-probabilities sit in a choice."""

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
        report: Callable[[GenerationRequest], Report],
    ) -> None:
        self.id_prefix = id_prefix
        self.whole_object = whole_object
        self.chunk_object = chunk_object
        self.whole_choice = whole_choice
        self.chunk_choice = chunk_choice
        self.first_choice = first_choice
        self.last_choice = last_choice
        self.report = report


_CHAT = _Kind(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    whole_choice=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chunk_choice=lambda text: {"delta": {"content": text}},
    first_choice={"delta": {"role": "assistant", "content": "", "refusal": None}},
    last_choice={"delta": {}},
    report=lambda asked: lambda drawn: {"content": logprobs.entries(drawn), "refusal": None},
)
_TEXT = _Kind(
    "cmpl-",
    "text_completion",
    "text_completion",
    whole_choice=lambda text: {"text": text},
    chunk_choice=lambda text: {"text": text},
    first_choice=None,
    last_choice={"text": ""},
    report=lambda asked: logprobs.TokenColumns(asked.prompt or "").add,
)


async def _answer(
    services: Services, request: Request, body: ChatBody | CompletionBody, asked: GenerationRequest, kind: _Kind
) -> Response:
    """Answer for what is `asked`, completed by the fields that both routes share."""
    asked = replace(
        asked,
        sampling=body.sampling,
        stop=body.stops,
        ignore_eos=bool(body.ignore_eos),
        choices=body.n or 1,
        logprobs=body.alternatives,
        grammar=body.constraint,
        speculate=body.speculate is not False,
        draft=body.draft,
        context_length=body.context_length,
        cache_prompt=body.cache_prompt is not False,
    )
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
        "usage": _usage(usage),
        "timings": _timings(usage, timings),
    }
    return json_response(answer, headers=headers)


def _whole_choice(index: int, choice: Choice, asked: GenerationRequest, kind: _Kind) -> dict[str, Any]:
    report = None if asked.logprobs is None else kind.report(asked)(choice.logprobs)
    return _choice(index, kind.whole_choice(choice.text), report, choice.end.reason.value)


async def _frames(
    running: Generation, asked: GenerationRequest, kind: _Kind, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    head = _head(running, kind.id_prefix, kind.chunk_object)
    # With include_usage every chunk but the last carries a usage of null.
    tail: dict[str, Any] = {"usage": None} if include_usage else {}

    def chunk(index: int, content: dict[str, Any], reason: str | None = None, report: Any = None) -> dict[str, Any]:
        return {**head, "choices": [_choice(index, content, report, reason)], **tail}

    if kind.first_choice is not None:
        for index in range(asked.choices):
            yield sse(chunk(index, kind.first_choice))
    marked = kind.chunk_choice(_MARK)
    if asked.logprobs is None:
        patterns = [sse(chunk(index, marked)).split(encode(_MARK)) for index in range(asked.choices)]
        reports = []
    else:
        patterns = [_three(sse(chunk(index, marked, report=_REPORT_MARK))) for index in range(asked.choices)]
        reports = [kind.report(asked) for _ in range(asked.choices)]
    ends: list[Finished] = []
    async for event in running:
        match event:
            # All chunks of text are alike but for the text and its report: the rest was encoded once.
            case Token() if not reports:
                before, after = patterns[event.choice]
                yield b"%s%s%s" % (before, encode(event.text), after)
            case Token():
                before, between, after = patterns[event.choice]
                report = encode(reports[event.choice](event.logprobs))
                yield b"%s%s%s%s%s" % (before, encode(event.text), between, report, after)
            case Finished():
                ends.append(event)
                last = chunk(event.choice, kind.last_choice, event.reason.value)
                if len(ends) < asked.choices:
                    yield sse(last)
                    continue
                usage, timings = generation.total(ends)
                figures = {"timings": _timings(usage, timings)}
                if include_usage:
                    yield sse(last) + sse({**head, "choices": [], "usage": _usage(usage), **figures})
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
        # Clients compare it to see whether the backend has changed; here it is the file that answered.
        "system_fingerprint": f"fp_{running.variant.digest.removeprefix('sha256:')[:12]}",
    }


def _choice(index: int, content: dict[str, Any], report: Any, reason: str | None) -> dict[str, Any]:
    return {"index": index, **content, "logprobs": report, "finish_reason": reason}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        # OpenAI's words for tokens guessed ahead; unlike there, those that were wrong are not among completion_tokens.
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_tokens,
            "rejected_prediction_tokens": usage.draft_tokens - usage.accepted_tokens,
        },
    }


def _timings(usage: Usage, timings: Timings) -> dict[str, Any]:
    """llama-server's object of that name: milliseconds, and 0 for a figure that there is not."""
    computed = usage.prompt_tokens - usage.cached_tokens
    # Its clock of a generation starts at the first token as well.
    timed = max(usage.completion_tokens - 1, 0)
    prompt_ms, predicted_ms = timings.prompt_seconds * 1e3, timings.generation_seconds * 1e3
    found = {
        "cache_n": usage.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": _ratio(prompt_ms, computed),
        "prompt_per_second": _ratio(computed * 1e3, prompt_ms),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": _ratio(predicted_ms, timed),
        "predicted_per_second": _ratio(timed * 1e3, predicted_ms),
    }
    if usage.draft_tokens:
        found |= {"draft_n": usage.draft_tokens, "draft_n_accepted": usage.accepted_tokens}
    return found


def _ratio(amount: float, by: float) -> float:
    return amount / by if by > 0 else 0.0


def _model_shape(variant: Variant) -> ModelShape:
    created = int(datetime.fromisoformat(variant.created_at).timestamp())
    return ModelShape(id=variant.name, created=created, owned_by=variant.model.namespace)
