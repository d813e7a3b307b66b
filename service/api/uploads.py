"""Blobs on their way in, for every dialect: bytes from the socket to the store, hashed, bounded, all or nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import Request, Response

from service.api.limits import declared_length, discard, late_body_response, next_chunk
from service.api.services import Services
from service.domain.names import parse_digest
from service.store.blobs import Upload

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
        await _receive_all(request, upload, services.options.body_read_timeout_seconds)
        await asyncio.to_thread(upload.finish)
    except TimeoutError:
        return late_body_response(request.scope["path"], services.options.body_read_timeout_seconds)
    finally:
        await asyncio.to_thread(upload.abort)
    await asyncio.to_thread(services.catalog.add_blob, digest, upload.received_bytes)
    if damaged:
        await asyncio.to_thread(services.catalog.mark_corrupt, digest, False)
    return Received(upload.received_bytes, upload.exists)


async def _receive_all(request: Request, upload: Upload, stall_seconds: float) -> None:
    """Bytes from the socket to the upload. TimeoutError when none come for `stall_seconds`."""
    gathered = bytearray()
    more = True
    while more:
        async with asyncio.timeout(stall_seconds):
            chunk, more = await next_chunk(request.receive)
        gathered += chunk
        if len(gathered) >= _WRITE_BYTES or (gathered and not more):
            try:
                await asyncio.to_thread(upload.write, bytes(gathered))
            except Exception:
                await discard(request.receive)
                raise
            gathered.clear()


def _is_corrupt(services: Services, digest: str) -> bool:
    return any(blob.digest == digest and blob.corrupt for blob in services.catalog.blobs())
