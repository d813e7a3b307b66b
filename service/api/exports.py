"""`/v1/variants/{ref}/file` and `GET /v1/blobs/{digest}`: stored files, for clients to keep."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.documents import errors
from service.api.downloads import Content, Download, FilePart, answer
from service.api.path_parameters import Digest, Ref
from service.api.services import Services, Use
from service.domain.catalog import Variant
from service.domain.errors import BlobCorrupt, BlobNotFound
from service.domain.names import parse_digest

router = APIRouter(prefix="/v1", tags=["native"])

_BYTES: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
RANGES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file, also where several ranges were asked for.", "content": _BYTES},
    206: {"description": "The range that was asked for.", "content": _BYTES},
    304: {"description": "The client has it: If-None-Match names its ETag."},
}
# A digest never means other bytes; a name may, once its variant was deleted and made anew.
_FOR_EVER = "private, max-age=31536000, immutable"
ASK_AGAIN = "private, no-cache"


@router.get(
    "/variants/{ref:path}/file",
    summary="Download a variant's file",
    response_class=Response,
    responses={**RANGES, **errors(404, 409, 416)},
)
async def variant_file(ref: Ref, request: Request, services: Use) -> Response:
    """The GGUF file. Its `ETag` is its digest; one `Range` at a time, under `If-Range` if need be."""
    variant = await services.find(ref)
    check_intact(variant)
    found = Download(entity_tag(variant.digest), file_name(variant), ASK_AGAIN)
    return await _send(services, request, variant.digest, variant.size_bytes, found)


@router.head(
    "/variants/{ref:path}/file",
    summary="Ask for the size and digest of a variant's file",
    response_class=Response,
    responses=errors(404, 409),
)
async def head_variant_file(ref: Ref, request: Request, services: Use) -> Response:
    """The headers of the file, and none of its bytes."""
    return await variant_file(ref, request, services)


@router.get(
    "/blobs/{digest}",
    summary="Download a blob",
    response_class=Response,
    responses={**RANGES, **errors(404, 409, 416)},
)
async def get_blob(digest: Digest, request: Request, services: Use) -> Response:
    """The bytes of any blob that is stored, as the file of a variant."""
    blob = await asyncio.to_thread(services.catalog.blob, parse_digest(digest))
    if blob is None:
        raise BlobNotFound(f"No blob {digest}; upload or import it again.")
    if blob.corrupt:
        raise BlobCorrupt("The bytes of this blob no longer match its digest; upload or import it again.")
    found = Download(entity_tag(digest), digest.replace(":", "-"), _FOR_EVER)
    return await _send(services, request, digest, blob.size_bytes, found)


def entity_tag(digest: str) -> str:
    """A digest as an ETag."""
    return f'"{digest}"'


def file_name(variant: Variant) -> str:
    """What to call a variant's file, e.g. `gloss-Q4_K_M.gguf`: of a name's characters, so it needs no escapes."""
    return f"{variant.model.model}-{variant.tag}.gguf"


def check_intact(variant: Variant) -> None:
    """Raise BlobCorrupt for a variant whose blob is known to be damaged."""
    if variant.corrupt:
        raise BlobCorrupt(
            f"The bytes of {variant.name} no longer match their digest; repair it "
            f"(POST /v1/variants/{variant.name}/repair), or bring the same bytes again."
        )


async def _send(services: Services, request: Request, digest: str, size_bytes: int, found: Download) -> Response:
    def opened() -> Content:
        services.blobs.size(digest)
        return Content([FilePart(services.blobs.path(digest), size_bytes)])

    content = await asyncio.to_thread(opened)
    return answer(request, content, found, stall_seconds=services.options.stream_stall_seconds)
