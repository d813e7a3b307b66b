"""Blobs on their way in, for every dialect: bytes from the socket to the store, hashed, bounded.

A whole body is all or nothing. In pieces (`PATCH /v1/blobs/{digest}`) what has come in stays, and the next piece goes
on there. One reader of sockets serves both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from service.api.catalogue_shapes import BlobShape, PieceShape
from service.api.documents import errors
from service.api.limits import declared_length, discard, late_body_response, next_chunk
from service.api.path_parameters import Digest
from service.api.ranges import ContentRange, parse_content_range
from service.api.responses import dialect_of, error_response, json_response
from service.api.services import Services, Use
from service.api.streams import ClientGone
from service.domain.errors import BlobNotFound, InvalidParameter, QuantryError
from service.domain.names import parse_digest
from service.store.piecewise import Piece, Standing

router = APIRouter(prefix="/v1/blobs", tags=["native"])

# Small network reads are gathered before they go to a thread to be hashed and written.
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """A blob that is in the store now. `existed`: it was before; the bytes sent have been checked all the same."""

    size_bytes: int
    existed: bool


async def receive_blob(digest: str, request: Request, services: Services) -> Received | Response:
    """Store the body under its digest; the answer to give instead when it did not come in time.

    Raises InvalidName, DigestMismatch, TooLarge, DiskFull. A blob that was marked corrupt is mended.
    """
    parse_digest(digest)
    announced_bytes = declared_length(dict(request.scope["headers"]))
    damaged = await asyncio.to_thread(_is_corrupt, services, digest)
    try:
        upload = await asyncio.to_thread(
            services.blobs.open_upload,
            digest,
            announced_bytes,
            limit_bytes=services.options.max_upload_bytes,
            replace=damaged,
        )
    except Exception:
        await discard(request.receive)
        raise
    try:
        await _receive_all(request, upload.write, services.options.body_read_timeout_seconds)
        await asyncio.to_thread(upload.finish)
    except TimeoutError:
        return late_body_response(request.scope["path"], services.options.body_read_timeout_seconds)
    finally:
        await asyncio.to_thread(upload.abort)
    await asyncio.to_thread(services.catalog.add_blob, digest, upload.received_bytes)
    if damaged:
        await asyncio.to_thread(services.catalog.mark_corrupt, digest, False)
    return Received(upload.received_bytes, upload.exists)


@router.patch(
    "/{digest}",
    summary="Upload a piece of a file",
    status_code=202,
    response_model=PieceShape,
    responses={
        200: {"model": BlobShape, "description": "The blob is stored already; nothing was read."},
        201: {"model": BlobShape, "description": "That was the last piece: the blob is stored."},
        **errors(408, 409, 413, 416, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def patch_blob(
    digest: Digest,
    request: Request,
    services: Use,
    content_range: Annotated[
        str,
        Header(
            alias="Content-Range",
            description="`bytes FIRST-LAST/TOTAL`, or `bytes */TOTAL`.",
            json_schema_extra={"pattern": r"^bytes ([0-9]{1,18}-[0-9]{1,18}|\*)/[0-9]{1,18}$"},
        ),
    ],
) -> Response:
    """The body is bytes FIRST to LAST of a file of TOTAL bytes, and begins where the upload stands.

    202 says in `Upload-Offset` how far it is; what has come in of a piece that broke off counts. A piece that begins
    elsewhere is answered with 416, a second writer with 409. `bytes */TOTAL` and no body asks, and ends an upload that
    has all its bytes. The last piece is answered with 201 once the digest has been checked.
    """
    parse_digest(digest)
    try:
        piece = await _begin(digest, request, services, parse_content_range(content_range))
    except QuantryError as error:
        await discard(request.receive)
        standing = await asyncio.to_thread(services.uploads.standing, digest)
        return error_response(error, dialect_of(request.scope["path"]), headers=standing_headers(standing))
    if isinstance(piece, Response):
        return piece
    return await _take_in(piece, request, services)


@router.delete(
    "/{digest}/upload",
    summary="Abort an upload in pieces",
    status_code=204,
    response_class=Response,
    responses=errors(404, 409),
)
async def abort_upload(digest: Digest, services: Use) -> Response:
    """Drops what has come in. A blob that is whole stays."""
    if not await asyncio.to_thread(services.uploads.abort, parse_digest(digest)):
        raise BlobNotFound("No upload of that blob is under way.", param="digest")
    return Response(status_code=204)


def standing_headers(standing: Standing | None) -> dict[str, str]:
    """How far an upload is, as headers; none when none has begun."""
    if standing is None:
        return {}
    return {"Upload-Offset": str(standing.received_bytes), "Upload-Length": str(standing.size_bytes)}


async def _begin(digest: str, request: Request, services: Services, sent: ContentRange) -> Piece | Response:
    """The piece to write to, or the answer for a blob that is there."""
    announced_bytes = declared_length(dict(request.scope["headers"]))
    expected_bytes = 0 if sent.start is None else sent.stop - sent.start
    if announced_bytes is not None and announced_bytes != expected_bytes:
        raise InvalidParameter(
            f"The body is {announced_bytes} bytes and Content-Range says {expected_bytes}; send what it says.",
            param="Content-Range",
        )

    def begin() -> Piece | int:
        damaged = _is_corrupt(services, digest)
        if not damaged and services.blobs.has(digest):
            return services.blobs.size(digest)
        return services.uploads.begin(
            digest,
            sent.size_bytes,
            sent.start,
            sent.stop,
            limit_bytes=services.options.max_upload_bytes,
            replace=damaged,
        )

    found = await asyncio.to_thread(begin)
    if isinstance(found, Piece):
        return found
    await discard(request.receive)
    await asyncio.to_thread(services.catalog.add_blob, digest, found)
    return json_response(BlobShape(digest=digest, size_bytes=found).model_dump())


async def _take_in(piece: Piece, request: Request, services: Services) -> Response:
    seconds = services.options.body_read_timeout_seconds
    digest, path = piece.digest, request.scope["path"]
    try:
        try:
            await _receive_all(request, piece.write, seconds)
        except TimeoutError:
            late = late_body_response(path, seconds)
            late.headers.update(standing_headers(piece.standing))
            return late
        except QuantryError as error:
            return error_response(error, dialect_of(path), headers=standing_headers(piece.standing))
        if not await asyncio.to_thread(piece.finish):
            shape = PieceShape(digest=digest, size_bytes=piece.size_bytes, received_bytes=piece.received_bytes)
            return json_response(shape.model_dump(), status=202, headers=standing_headers(piece.standing))
        await asyncio.to_thread(_enter, services, digest, piece.size_bytes)
    finally:
        await asyncio.to_thread(piece.close)
    blob = BlobShape(digest=digest, size_bytes=piece.size_bytes)
    return json_response(blob.model_dump(), status=201, headers={"Location": f"/v1/blobs/{digest}"})


def _enter(services: Services, digest: str, size_bytes: int) -> None:
    """The row of a blob that has been committed; one that was damaged is mended by it."""
    services.catalog.add_blob(digest, size_bytes)
    if _is_corrupt(services, digest):
        services.catalog.mark_corrupt(digest, False)


async def _receive_all(request: Request, write: Callable[[bytes], None], stall_seconds: float) -> None:
    """Bytes from the socket to `write`. TimeoutError when none come for `stall_seconds`.

    What has been read is written also where the rest does not come.
    """
    gathered = bytearray()
    more = True
    while more:
        try:
            async with asyncio.timeout(stall_seconds):
                chunk, more = await next_chunk(request.receive)
        except (TimeoutError, ClientGone):
            if gathered:
                await asyncio.to_thread(write, bytes(gathered))
            raise
        gathered += chunk
        if len(gathered) >= _WRITE_BYTES or (gathered and not more):
            try:
                await asyncio.to_thread(write, bytes(gathered))
            except Exception:
                await discard(request.receive)
                raise
            gathered.clear()


def _is_corrupt(services: Services, digest: str) -> bool:
    known = services.catalog.blob(digest)
    return known is not None and known.corrupt
