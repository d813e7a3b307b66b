"""Reranking: `/v1/rerank` and its other paths, in Jina's shape as llama-server has it, or that of TEI."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.documents import errors
from service.api.generation import VARIANT_HEADER
from service.api.llama_server_model import meant
from service.api.llama_server_shapes import LlamaServerError, RankedShape, RanksShape, RerankBody
from service.api.responses import json_response
from service.api.services import Use
from service.api.streams import unless_gone
from service.api.vectors import numbers
from service.domain.errors import InvalidParameter
from service.domain.generation import EmbeddingRequest

router = APIRouter(tags=["llama-server"])


@router.post(
    "/v1/rerank",
    summary="Sort documents by how well they fit a query",
    response_model=RanksShape | list[RankedShape],
    responses=errors(404, 409, 429, 503, 504, body=True, model=LlamaServerError),
)
@router.post("/v1/reranking", name="rerank_too", include_in_schema=False)
@router.post("/rerank", name="rerank_short", include_in_schema=False)
@router.post("/reranking", name="reranking_short", include_in_schema=False)
async def rerank(body: RerankBody, request: Request, services: Use) -> Response:
    """For rerankers. With `texts` instead of `documents` the answer is a list, as text-embeddings-inference has it."""
    given = body.documents if body.texts is None else body.texts
    if given is None or (body.documents is not None and body.texts is not None):
        raise InvalidParameter("Send the texts to be sorted as documents, or as texts.", param="documents")
    variant = await meant(services, body.model)
    asked = EmbeddingRequest(tuple(given), normalize=False, truncate=True, query=body.query)
    answer = await unless_gone(request.receive, services.pool.embed(variant, asked))
    scores = [numbers(vector)[0] for vector in answer.vectors]
    best = sorted(range(len(given)), key=lambda index: -scores[index])[: body.top_n]
    headers = {VARIANT_HEADER: variant.name}
    if body.texts is not None:
        listed: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in best]
        if body.return_text:
            listed = [{**entry, "text": given[entry["index"]]} for entry in listed]
        return json_response(listed, headers=headers)
    content = {
        "model": variant.name,
        "object": "list",
        "usage": {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens},
        "results": [{"index": index, "relevance_score": scores[index]} for index in best],
    }
    return json_response(content, headers=headers)
