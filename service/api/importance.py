"""`/v1/importance-matrices`: what is stored, its figures of each tensor, and the file as llama.cpp's tools read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from starlette.responses import StreamingResponse

from service.api.documents import errors
from service.api.laboratory_shapes import (
    GoneShape,
    ImportanceMatrixDetailShape,
    ImportanceMatrixListing,
    ImportanceMatrixShape,
    TensorStatisticsShape,
)
from service.api.path_parameters import Digest
from service.api.services import Services, Use
from service.api.shapes import NAME_PATTERN
from service.domain.importance import ImportanceMatrix
from service.domain.names import parse_ref

router = APIRouter(prefix="/v1/importance-matrices", tags=["laboratory"])

_CHUNK_BYTES = 1 << 20

Model = Annotated[
    str | None,
    Query(max_length=600, description="Only this model's matrices.", json_schema_extra={"pattern": NAME_PATTERN}),
]

Form = Annotated[Literal["json", "gguf"], Query(alias="format", description="The figures, or the file.")]


@router.get("", summary="List the importance matrices", responses=errors())
async def list_all(services: Use, model: Model = None) -> ImportanceMatrixListing:
    """Newest first."""
    key = None if model is None else parse_ref(model).key

    def listed() -> list[ImportanceMatrixShape]:
        names = _names(services)
        return [_shape(matrix, names) for matrix in reversed(services.laboratory.importance_matrices(key))]

    return ImportanceMatrixListing(data=await asyncio.to_thread(listed))


@router.get(
    "/{digest}",
    summary="Show an importance matrix, or download it",
    response_model=ImportanceMatrixDetailShape,
    responses={
        200: {
            "description": "Figures of each tensor; with `format=gguf`, the file.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        },
        **errors(404),
    },
)
async def show(digest: Digest, services: Use, form: Form = "json") -> Response:
    """The file has llama.cpp's GGUF form of an importance matrix: llama-quantize and llama-imatrix read it."""
    matrix = await asyncio.to_thread(services.laboratory.importance_matrix, digest)
    if form == "gguf":
        return _download(services.blobs.path(matrix.digest), matrix)
    names = await asyncio.to_thread(_names, services)
    statistics = [
        TensorStatisticsShape.model_validate(tensor, from_attributes=True) for tensor in matrix.facts.statistics
    ]
    shape = ImportanceMatrixDetailShape(**_shape(matrix, names).model_dump(), statistics=statistics)
    return Response(shape.model_dump_json(), media_type="application/json")


@router.delete("/{digest}", summary="Delete an importance matrix", responses=errors(404, 409))
async def delete(digest: Digest, services: Use) -> GoneShape:
    """409 while a variant was made with it, which could not be rebuilt without."""
    matrix = await asyncio.to_thread(services.laboratory.delete_importance_matrix, digest)
    return GoneShape(id=matrix.digest, object="importance_matrix")


def _names(services: Services) -> dict[str, str]:
    """Digest -> canonical name of the variants that are stored."""
    return {variant.digest: variant.name for variant in services.catalog.variants()}


def _shape(matrix: ImportanceMatrix, names: dict[str, str]) -> ImportanceMatrixShape:
    facts = matrix.facts
    return ImportanceMatrixShape(
        digest=matrix.digest,
        model=matrix.model,
        size_bytes=matrix.size_bytes,
        source=names.get(matrix.source_digest or ""),
        source_digest=matrix.source_digest,
        datasets=list(facts.datasets),
        dataset_digest=matrix.dataset_digest,
        chunks=facts.chunks,
        chunk_tokens=facts.chunk_tokens,
        tensors=len(facts.statistics),
        created_at=matrix.created_at,
    )


def _download(path: Path, matrix: ImportanceMatrix) -> Response:
    name = f"{matrix.model.rpartition('/')[2]}-{matrix.digest.removeprefix('sha256:')[:12]}.imatrix.gguf"
    headers = {
        "Content-Length": str(matrix.size_bytes),
        "Content-Disposition": f'attachment; filename="{name}"',
        "ETag": f'"{matrix.digest}"',
    }
    return StreamingResponse(_chunks(path), media_type="application/octet-stream", headers=headers)


async def _chunks(path: Path) -> AsyncGenerator[bytes, None]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk
