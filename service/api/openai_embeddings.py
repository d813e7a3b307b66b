"""OpenAI's `POST /v1/embeddings`: texts, or their token ids, become vectors. Shapes and route.

The answer is encoded piece by piece: millions of numbers must not hold up the other clients of the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import sys
from array import array
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Discriminator, Field, StringConstraints, Tag

from service.api.documents import errors
from service.api.generation import VARIANT_HEADER
from service.api.openai_shapes import Lenient
from service.api.services import Use
from service.api.shapes import WHOLE, Name, Shape
from service.api.streams import unless_gone
from service.domain.generation import EmbeddingRequest, Embeddings

router = APIRouter(prefix="/v1", tags=["openai"])

MAX_INPUTS = 2048
MAX_DIMENSIONS = 1 << 16
MAX_TOKEN_ID = (1 << 31) - 1
_NUMBERS_AT_ONCE = 16_384  # about a millisecond of encoding

Text = Annotated[str, StringConstraints(min_length=1)]
# A list is given up at its first wrong item: a problem for each of a million would hold up the event loop.
Tokens = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID), WHOLE]], Field(min_length=1, fail_fast=True)]
_SEVERAL = Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)


def _kind(value: Any) -> str:
    """Which of the four forms `input` is meant to have, by its first item, so that one problem is told and not four."""
    if not isinstance(value, list):
        return "str"
    if value and isinstance(value[0], list):
        return "list[list[int]]"
    return "list[int]" if value and isinstance(value[0], int | float) else "list[str]"


Input = Annotated[
    Annotated[Text, Tag("str")]
    | Annotated[list[Text], _SEVERAL, Tag("list[str]")]
    | Annotated[Tokens, Tag("list[int]")]
    | Annotated[list[Tokens], _SEVERAL, Tag("list[list[int]]")],
    Discriminator(_kind),
]


class EmbeddingsBody(Lenient):
    """`POST /v1/embeddings`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "gloss:Q4_K_M", "input": ["a horse", "a ship"]}]}
    )

    model: Name
    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=MAX_DIMENSIONS), WHOLE] | None = None

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """The texts in order, each as it was sent; a list of numbers is one text."""
        if isinstance(self.input, str):
            return (self.input,)
        if isinstance(self.input[0], int):
            return (_ids(self.input),)
        return tuple(text if isinstance(text, str) else _ids(text) for text in self.input)


class EmbeddingShape(Shape):
    """One vector."""

    object: Literal["embedding"]
    index: int = Field(description="Which of the inputs it is of.")
    embedding: list[float] | str = Field(description="Numbers, or the base64 of little-endian float32.")


class EmbeddingUsageShape(Shape):
    """What was read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsShape(Shape):
    """OpenAI's list of embeddings."""

    object: Literal["list"]
    data: list[EmbeddingShape]
    model: str
    usage: EmbeddingUsageShape


@router.post(
    "/embeddings",
    summary="Turn texts into vectors (OpenAI)",
    response_model=EmbeddingsShape,
    responses=errors(404, 409, 429, 503, 504, body=True),
)
async def embeddings(body: EmbeddingsBody, request: Request, services: Use) -> Response:
    """One vector of length 1 for each input, pooled as the model's file says, in the order of the inputs."""
    variant = await services.servable(body.model)
    asked = EmbeddingRequest(body.inputs, dimensions=body.dimensions, truncate=False)
    answer = await unless_gone(request.receive, services.pool.embed(variant, asked))
    content = await _encoded(answer, variant.name, as_text=body.encoding_format == "base64")
    return Response(content, headers={VARIANT_HEADER: variant.name}, media_type="application/json")


async def _encoded(answer: Embeddings, model: str, *, as_text: bool) -> bytes:
    parts = [b'{"object":"list","data":[']
    numbers = 0
    for index, vector in enumerate(answer.vectors):
        if index:
            parts.append(b",")
        value: Any = base64.b64encode(vector).decode() if as_text else _numbers(vector)
        parts.append(msgspec.json.encode({"object": "embedding", "index": index, "embedding": value}))
        numbers += len(vector) // 4
        if numbers >= _NUMBERS_AT_ONCE:
            numbers = 0
            await asyncio.sleep(0)
    usage = {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens}
    parts.append(b'],"model":%s,"usage":%s}' % (msgspec.json.encode(model), msgspec.json.encode(usage)))
    return b"".join(parts)


def _numbers(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _ids(tokens: Any) -> tuple[int, ...]:
    return tuple(tokens)
