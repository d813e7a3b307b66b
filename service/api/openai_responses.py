"""OpenAI's `/v1/responses`: answers made of items, alone or going on from one that is kept, whole or streamed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import WithJsonSchema

from service.api import generation
from service.api.auth import caller
from service.api.documents import EVENT_STREAM, errors
from service.api.generation import VARIANT_HEADER, Generation
from service.api.openai_items import (
    Item,
    MessageItemBody,
    ReferenceItemBody,
    messages_of,
    output_item,
    shown,
    with_id,
)
from service.api.openai_output import Event, Output
from service.api.openai_responses_shapes import ResponsesBody
from service.api.openai_store import StoredResponse
from service.api.responses import Dialect, error_body, error_from_event, json_response
from service.api.services import Services, Use
from service.api.shapes import Shape
from service.api.streams import EventStream, sse, unless_gone
from service.api.timings import timings_shape
from service.domain.errors import InvalidParameter, NotSupported, PreviousResponseNotFound, ResponseNotFound
from service.domain.generation import Failed, Finished, FinishReason, GenerationRequest, Usage

router = APIRouter(prefix="/v1", tags=["openai"])

_GRAMMAR_FIELD = "text.format"
MAX_ITEMS = 100

ResponseId = Annotated[str, Path(description="The `id` of a response.", min_length=1, max_length=256)]


class ResponseShape(Shape):
    """OpenAI's `response`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
    incomplete_details: dict[str, Any] | None
    error: dict[str, Any] | None


class DeletedResponseShape(Shape):
    """A response that is kept no longer."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemsShape(Shape):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseInputTokensShape(Shape):
    """How long a prompt is."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post(
    "/responses",
    summary="Make a response (OpenAI)",
    response_model=ResponseShape,
    responses={
        200: {"description": "The response; with `stream`, its events.", "content": EVENT_STREAM},
        **errors(404, 409, 429, 503, 504, body=True),
    },
)
async def create_response(body: ResponsesBody, request: Request, services: Use) -> Response:
    """Fields as OpenAI documents them; `model` is a variant's name as people type it."""
    owner = caller(request.scope).salt
    items, asked = _asked(body, services, owner)
    variant = await services.servable(body.model)
    headers = {VARIANT_HEADER: variant.name}
    running = await generation.begin(services, variant, asked, request, grammar_field=_GRAMMAR_FIELD)
    made = _Made(running, body, items, with_logprobs=asked.logprobs is not None)
    if body.stream:
        return EventStream(
            _frames(running, made, services, owner),
            close=running.cancel,
            stall_seconds=services.options.stream_stall_seconds,
            headers=headers,
        )
    try:
        await unless_gone(request.receive, made.read(running))
    finally:
        running.cancel()
    made.keep(services, owner)
    return json_response(made.response, headers=headers)


@router.post(
    "/responses/input_tokens",
    summary="Count the tokens of a request for a response (OpenAI)",
    response_model=ResponseInputTokensShape,
    responses=errors(404, 409, 429, 503, 504, body=True),
)
async def count_input_tokens(body: ResponsesBody, request: Request, services: Use) -> Response:
    """How many tokens the prompt would have, template and tools included. Loads the variant where needed."""
    _, asked = _asked(body, services, caller(request.scope).salt)
    variant = await services.servable(body.model)
    rendered = await unless_gone(request.receive, generation.rendered(services, variant, asked))
    answer = ResponseInputTokensShape(input_tokens=len(rendered.tokens))
    return json_response(answer.model_dump(), headers={VARIANT_HEADER: variant.name})


@router.get(
    "/responses/{response_id}",
    summary="Show a response that is kept (OpenAI)",
    response_model=ResponseShape,
    responses=errors(404),
)
async def show_response(
    response_id: ResponseId,
    request: Request,
    services: Use,
    stream: Annotated[
        bool,
        Query(description="Known; a response that is whole is not streamed."),
        WithJsonSchema({"type": "boolean", "const": False}),
    ] = False,
) -> Response:
    """As it was sent."""
    if stream:
        raise NotSupported("A response that is whole is not streamed again; ask without stream.", param="stream")
    return json_response(services.responses.get(caller(request.scope).salt, response_id).body)


@router.delete("/responses/{response_id}", summary="Forget a response (OpenAI)", responses=errors(404))
async def delete_response(response_id: ResponseId, request: Request, services: Use) -> DeletedResponseShape:
    """What goes on from it is kept."""
    services.responses.delete(caller(request.scope).salt, response_id)
    return DeletedResponseShape(id=response_id)


@router.get("/responses/{response_id}/input_items", summary="List what a response read (OpenAI)", responses=errors(404))
async def list_input_items(
    response_id: ResponseId,
    request: Request,
    services: Use,
    after: Annotated[str | None, Query(description="Begin behind the item of this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = 20,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
) -> ItemsShape:
    """The whole conversation before it, instructions left out; the latest first unless `order` is `asc`."""
    found = [shown(item) for item in services.responses.get(caller(request.scope).salt, response_id).input]
    if order == "desc":
        found.reverse()
    if after is not None:
        places = [place for place, item in enumerate(found) if item["id"] == after]
        if not places:
            raise InvalidParameter("No item of this response has that id; send one from its list.", param="after")
        found = found[places[0] + 1 :]
    page = found[:limit]
    return ItemsShape(
        data=page,
        first_id=page[0]["id"] if page else None,
        last_id=page[-1]["id"] if page else None,
        has_more=len(found) > limit,
    )


def _asked(body: ResponsesBody, services: Services, owner: str) -> tuple[tuple[Item, ...], GenerationRequest]:
    """The whole conversation, and what is asked for."""
    body.check()
    earlier: tuple[Item, ...] = ()
    if body.previous_response_id is not None:
        try:
            earlier = services.responses.get(owner, body.previous_response_id).conversation
        except ResponseNotFound as error:
            raise PreviousResponseNotFound(error.message, param="previous_response_id") from None
    sent = [MessageItemBody(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    items = (*earlier, *(_present(item, index, services, owner) for index, item in enumerate(sent)))
    return items, body.request(messages_of(items, body.instructions))


def _present(item: Item | ReferenceItemBody, index: int, services: Services, owner: str) -> Item:
    if not isinstance(item, ReferenceItemBody):
        return with_id(item, generation.new_id)
    found = services.responses.item(owner, item.id)
    if found is None:
        raise InvalidParameter(
            "No response that is kept here has an item of that id; send the item itself.", param=f"input[{index}].id"
        )
    return found


class _Made:
    """A response in the making, and then as it is sent and kept."""

    def __init__(
        self, running: Generation, body: ResponsesBody, items: tuple[Item, ...], *, with_logprobs: bool
    ) -> None:
        self.output = Output(with_logprobs=with_logprobs)
        self._items = items
        self._is_kept = body.store is not False
        self.response: dict[str, Any] = {
            "id": generation.new_id("resp_"),
            "object": "response",
            "created_at": int(running.created_at.timestamp()),
            "completed_at": None,
            "status": "in_progress",
            "model": running.variant.name,
            "output": [],
            "usage": None,
            "incomplete_details": None,
            "error": None,
            "user": None,
            **body.echoed(),
        }

    async def read(self, running: Generation) -> None:
        """All events, to the end; raises the error of a Failed."""
        async for event in running:
            match event:
                case Finished():
                    for _ in self.finish(event):
                        pass
                case Failed():
                    raise error_from_event(event)
                case _:
                    for _ in self.output.push(event):
                        pass

    def finish(self, end: Finished) -> list[Event]:
        """What a stream says of the end, but for the last event."""
        is_whole = end.reason is not FinishReason.LENGTH
        events = list(self.output.finish(is_whole=is_whole))
        self.response |= {
            "status": "completed" if is_whole else "incomplete",
            "completed_at": int(time.time()) if is_whole else None,
            "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
            "output": self.output.items,
            "usage": _usage(end.usage),
            "timings": timings_shape(end.usage, end.timings),
        }
        return events

    def fail(self, failed: Failed) -> None:
        """The end of a stream that has begun well."""
        error = error_body(error_from_event(failed), Dialect.OPENAI)["error"]
        self.response |= {"status": "failed", "error": error, "output": self.output.items}

    def keep(self, services: Services, owner: str) -> None:
        """Keep it, where that is wanted."""
        if self._is_kept:
            made = tuple(output_item(item) for item in self.output.items)
            services.responses.put(owner, StoredResponse(self.response, self._items, made))


async def _frames(running: Generation, made: _Made, services: Services, owner: str) -> AsyncGenerator[bytes, None]:
    number = 0

    def frame(event: Event) -> bytes:
        nonlocal number
        numbered = {"type": event["type"], "sequence_number": number, **event}
        number += 1
        return sse(numbered, event=event["type"])

    def about_all(state: str) -> bytes:
        return frame({"type": f"response.{state}", "response": made.response})

    yield about_all("created") + about_all("in_progress")
    async for event in running:
        match event:
            case Finished():
                yield b"".join(map(frame, made.finish(event)))
                # Kept before the last event: the client may go on from it at once.
                made.keep(services, owner)
                yield about_all(made.response["status"])
            case Failed():
                made.fail(event)
                yield about_all("failed")
            case _:
                frames = b"".join(map(frame, made.output.push(event)))
                if frames:
                    yield frames


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
