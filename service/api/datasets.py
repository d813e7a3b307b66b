"""`/v1/datasets`: the texts and tasks that the laboratory calibrates, searches and measures with."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from service.api.documents import errors
from service.api.laboratory_bodies import DATASET_PATTERN
from service.api.laboratory_shapes import DatasetListing, DatasetShape, GoneShape
from service.api.limits import declared_length, discard, late_body_response, next_chunk
from service.api.responses import json_response
from service.api.services import Use
from service.domain.datasets import Dataset, DatasetKind
from service.domain.errors import TooLarge
from service.store.datasets import store_dataset

router = APIRouter(prefix="/v1/datasets", tags=["laboratory"])

MAX_DATASET_BYTES = 64 << 20  # it is checked whole, in memory
_MEDIA_TYPES = {DatasetKind.TEXT: "text/plain; charset=utf-8", DatasetKind.TASK: "application/jsonl"}

Name = Annotated[
    str,
    Path(description="Letters, digits, `_`, `.` and `-`, without regard to case.", pattern=DATASET_PATTERN),
]


@router.get("", summary="List the datasets", responses=errors())
async def list_all(services: Use) -> DatasetListing:
    """Those that come with quantry, and those that were sent."""
    found = await asyncio.to_thread(services.laboratory.datasets)
    return DatasetListing(data=[_shape(dataset) for dataset in found])


@router.put(
    "/{name}",
    summary="Store a text or a task",
    status_code=201,
    response_model=DatasetShape,
    responses={**errors(408, 409, 413, 415, 507)},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"text/plain": {"schema": {"type": "string", "minLength": 1}}},
        }
    },
)
async def put(name: Name, request: Request, services: Use, kind: DatasetKind = DatasetKind.TEXT) -> Response:
    """The body is the dataset itself, in UTF-8; its content type does not matter. One of that name is replaced.

    A `text` is plain text. A `task` has a JSON object a line: `expected`, and either `prompt` or `messages`.
    Jobs that were asked for before keep to the bytes that the name then had.
    """
    try:
        data = await _read(request, services.options.body_read_timeout_seconds)
    except TimeoutError:
        return late_body_response(request.scope["path"], services.options.body_read_timeout_seconds)
    dataset = await asyncio.to_thread(store_dataset, services.blobs, services.laboratory, name, kind, data)
    headers = {"Location": f"/v1/datasets/{dataset.name}"}
    return json_response(_shape(dataset).model_dump(), status=201, headers=headers)


@router.get(
    "/{name}",
    summary="Read a dataset",
    response_class=Response,
    responses={
        200: {
            "description": "Its bytes.",
            "content": {
                "text/plain": {"schema": {"type": "string"}},
                "application/jsonl": {"schema": {"type": "string"}},
            },
        },
        **errors(404),
    },
)
async def content(name: Name, services: Use) -> Response:
    """As it was sent; `X-Quantry-Size-Bytes` has its size."""
    dataset = await asyncio.to_thread(services.laboratory.dataset, name)
    data = await asyncio.to_thread(services.blobs.path(dataset.digest).read_bytes)
    headers = {"X-Quantry-Size-Bytes": str(len(data)), "ETag": f'"{dataset.digest}"'}
    return Response(data, media_type=_MEDIA_TYPES[dataset.kind], headers=headers)


@router.delete("/{name}", summary="Delete a dataset", responses=errors(404, 409))
async def delete(name: Name, services: Use) -> GoneShape:
    """Those that come with quantry stay: 409. What was measured with it stays as it is."""
    dataset = await asyncio.to_thread(services.laboratory.delete_dataset, name)
    return GoneShape(id=dataset.name, object="dataset")


def _shape(dataset: Dataset) -> DatasetShape:
    return DatasetShape(
        name=dataset.name,
        kind=dataset.kind.value,
        digest=dataset.digest,
        size_bytes=dataset.size_bytes,
        built_in=dataset.built_in,
        created_at=dataset.created_at,
    )


async def _read(request: Request, stall_seconds: float) -> bytes:
    """The whole body. Raises TooLarge, and TimeoutError when nothing comes for `stall_seconds`."""
    announced_bytes = declared_length(dict(request.scope["headers"])) or 0
    gathered = bytearray()
    more = True
    while more and max(len(gathered), announced_bytes) <= MAX_DATASET_BYTES:
        async with asyncio.timeout(stall_seconds):
            chunk, more = await next_chunk(request.receive)
        gathered += chunk
    if max(len(gathered), announced_bytes) > MAX_DATASET_BYTES:
        await discard(request.receive)
        raise TooLarge(f"A dataset has at most {MAX_DATASET_BYTES} bytes; send a part of it.")
    return bytes(gathered)
