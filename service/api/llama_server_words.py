"""llama-server's questions about words and tokens: `/tokenize`, `/detokenize`, `/apply-template`, `.../input_tokens`.

The last two take the body of OpenAI's chat route, and read it as that route does.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.documents import errors
from service.api.generation import VARIANT_HEADER, rendered
from service.api.llama_server_model import meant
from service.api.llama_server_shapes import (
    ContentShape,
    DetokenizeBody,
    InputTokensShape,
    LlamaServerError,
    PromptShape,
    TokenizeBody,
    TokensShape,
)
from service.api.openai_chat_shapes import ChatBody
from service.api.responses import json_response
from service.api.services import Services, Use
from service.api.shapes import Name
from service.api.streams import unless_gone
from service.workers.questions import Detokenize, Rendered, Tokenize

router = APIRouter(tags=["llama-server"])


class TemplateBody(ChatBody):
    """`POST /apply-template`."""

    model: Name = ""


_ERRORS = errors(404, 409, 429, 503, 504, body=True, model=LlamaServerError)


@router.post("/tokenize", summary="Text to token ids", response_model=TokensShape, responses=_ERRORS)
async def tokenize(body: TokenizeBody, request: Request, services: Use) -> Response:
    """With `with_pieces` each token has its text, or its bytes where they are no whole characters."""
    variant = await meant(services, body.model)
    parts = (body.content,) if isinstance(body.content, str) else tuple(body.content)
    question = Tokenize(parts, body.add_special, body.parse_special, body.with_pieces)
    found = await unless_gone(request.receive, services.pool.ask(variant, question))
    tokens: list[Any] = list(found.tokens)
    if body.with_pieces:
        tokens = [{"id": token, "piece": _piece(data)} for token, data in zip(found.tokens, found.pieces, strict=True)]
    return json_response({"tokens": tokens}, headers={VARIANT_HEADER: variant.name})


@router.post("/detokenize", summary="Token ids to text", response_model=ContentShape, responses=_ERRORS)
async def detokenize(body: DetokenizeBody, request: Request, services: Use) -> Response:
    """Special tokens are written by their names."""
    variant = await meant(services, body.model)
    found = await unless_gone(request.receive, services.pool.ask(variant, Detokenize(tuple(body.tokens))))
    return json_response({"content": found.text}, headers={VARIANT_HEADER: variant.name})


@router.post("/apply-template", summary="The prompt of a conversation", response_model=PromptShape, responses=_ERRORS)
async def apply_template(body: TemplateBody, request: Request, services: Use) -> Response:
    """What the model would read, without generating anything. The body is that of `/v1/chat/completions`."""
    prompt, headers = await _rendered(body, request, services)
    return json_response({"prompt": prompt.text}, headers=headers)


@router.post(
    "/v1/chat/completions/input_tokens",
    summary="Count the tokens of a conversation (OpenAI)",
    response_model=InputTokensShape,
    responses=errors(404, 409, 429, 503, 504, body=True),
)
async def input_tokens(body: ChatBody, request: Request, services: Use) -> Response:
    """How many tokens the prompt has, template and tools included. The body is that of `/v1/chat/completions`."""
    prompt, headers = await _rendered(body, request, services)
    return json_response({"object": "response.input_tokens", "input_tokens": len(prompt.tokens)}, headers=headers)


async def _rendered(body: ChatBody, request: Request, services: Services) -> tuple[Rendered, dict[str, str]]:
    variant = await meant(services, body.model or None)
    found = await unless_gone(request.receive, rendered(services, variant, body.request()))
    return found, {VARIANT_HEADER: variant.name}


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)
