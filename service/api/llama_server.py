"""llama-server's own dialect of generating: `/completion`, `/completions` and `/infill`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api import generation, llama_server_answer
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Generation
from service.api.llama_server_lora import lora_uses
from service.api.llama_server_model import meant
from service.api.llama_server_request import grammar_field, sampled
from service.api.llama_server_shapes import (
    CompletedShape,
    InfillBody,
    LlamaServerCompletionBody,
    LlamaServerError,
    SampledBody,
)
from service.api.responses import Dialect, error_from_event, json_response
from service.api.services import Services, Use
from service.api.streams import EventStream, error_event, sse, unless_gone
from service.domain.catalog import Variant
from service.domain.generation import Failed, Finished, GenerationRequest, Token
from service.workers.questions import Detokenize, Infill, InfillFile, Tokenize

router = APIRouter(tags=["llama-server"])

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The text; with `stream`, its pieces.", "content": EVENT_STREAM},
    **errors(404, 409, 429, 503, 504, body=True, model=LlamaServerError),
}


@router.post(
    "/completion",
    summary="Complete a prompt (llama-server)",
    response_model=CompletedShape | dict[str, Any],
    responses=_RESPONSES,
)
@router.post(
    "/completions",
    summary="Complete a prompt (llama-server), by its other path",
    name="complete_too",
    response_model=CompletedShape | dict[str, Any],
    responses=_RESPONSES,
)
async def complete(body: LlamaServerCompletionBody, request: Request, services: Use) -> Response:
    """Raw text or token ids, or both in one list; texts may name special tokens. Without `model`, the one in memory."""
    variant = await meant(services, body.model)
    if isinstance(body.prompt, str):
        asked = GenerationRequest(prompt=body.prompt, parse_special=True)
        return await _answer(services, request, variant, body, asked, body.prompt)
    question = Tokenize(tuple(body.prompt), add_special=True)
    found = await unless_gone(request.receive, services.pool.ask(variant, question))
    return await _answer_tokens(services, request, variant, body, found.tokens)


@router.post(
    "/infill",
    summary="Fill the hole between two texts (llama-server)",
    response_model=CompletedShape | dict[str, Any],
    responses=_RESPONSES,
)
async def infill(body: InfillBody, request: Request, services: Use) -> Response:
    """For models with tokens for it. The longest text that fits the context is taken; `input_extra` is cut first."""
    variant = await meant(services, body.model)
    question = Infill(
        body.input_prefix,
        body.input_suffix,
        tuple(InfillFile(file.text, file.filename) for file in body.input_extra),
        body.prompt,
        reserved=max(body.n_predict, 1) if body.n_predict >= 0 else 1024,
    )
    found = await unless_gone(request.receive, services.pool.ask(variant, question))
    return await _answer_tokens(services, request, variant, body, found.tokens)


async def _answer_tokens(
    services: Services, request: Request, variant: Variant, body: SampledBody, tokens: tuple[int, ...]
) -> Response:
    if not tokens:
        return await _answer(services, request, variant, body, GenerationRequest(prompt=""), "")
    written = await unless_gone(request.receive, services.pool.ask(variant, Detokenize(tokens)))
    return await _answer(services, request, variant, body, GenerationRequest(prompt_tokens=tokens), written.text)


async def _answer(
    services: Services, request: Request, variant: Variant, body: SampledBody, asked: GenerationRequest, prompt: str
) -> Response:
    asked = replace(sampled(asked, body), adapters=await lora_uses(services, variant, body.lora))
    headers = {VARIANT_HEADER: variant.name}
    field = grammar_field(body)
    if body.stream:
        running = await generation.begin(services, variant, asked, request, grammar_field=field)
        return EventStream(
            _frames(running, body, asked, prompt),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    _, (choice,) = await generation.whole(services, variant, asked, request, grammar_field=field)
    answer = llama_server_answer.whole(
        body,
        asked,
        choice.end,
        model=variant.name,
        prompt=prompt,
        text=choice.text,
        has_new_line="\n" in choice.text,
    )
    if asked.logprobs:
        answer["completion_probabilities"] = llama_server_answer.chances(choice.logprobs)
    return json_response(llama_server_answer.selected(answer, body.response_fields), headers=headers)


async def _frames(
    running: Generation, body: SampledBody, asked: GenerationRequest, prompt: str
) -> AsyncGenerator[bytes, None]:
    has_new_line = False
    async for event in running:
        match event:
            case Token():
                has_new_line |= "\n" in event.text
                if body.n_predict != 0:
                    yield sse(llama_server_answer.piece(event.text, event.logprobs, running.prompt_tokens))
            case Finished():
                last = llama_server_answer.whole(
                    body,
                    asked,
                    event,
                    model=running.variant.name,
                    prompt=prompt,
                    text="",
                    has_new_line=has_new_line,
                )
                yield sse(llama_server_answer.selected(last, body.response_fields))
            case Failed():
                yield error_event(error_from_event(event), Dialect.LLAMA_SERVER)
