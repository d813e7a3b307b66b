"""`/v1/blobs` and the native half of `/v1/models`: uploading, importing, copying and deleting models."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from service.api.catalogue import show_variant
from service.api.catalogue_shapes import BlobShape, CopyBody, DeletedShape, ImportBody, JobShape, VariantShape
from service.api.documents import errors
from service.api.import_paths import admitted_path
from service.api.jobs import accepted
from service.api.on_demand import read_preference
from service.api.path_parameters import Digest, Ref
from service.api.responses import Dialect, error_from, error_response, json_response
from service.api.services import Services, Use
from service.api.streams import unless_gone
from service.api.uploads import receive_blob, standing_headers
from service.api.variants import orphaned, removed
from service.domain.errors import BlobNotFound, JobFailed, ModelNotFound
from service.domain.jobs import ENDED, Adoption, ImportSpec, Job, JobStatus, NamedBlob, PullSpec
from service.domain.names import parse_digest, parse_ref

router = APIRouter(prefix="/v1", tags=["native"])


@router.put(
    "/blobs/{digest}",
    summary="Upload a file by its content",
    status_code=201,
    response_model=BlobShape,
    responses={
        200: {"model": BlobShape, "description": "It was there already; the bytes sent have been checked."},
        **errors(408, 413, 415, 507),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_blob(digest: Digest, request: Request, services: Use) -> Response:
    """The body is the file, streamed. Bytes that do not match the digest are refused and nothing is stored."""
    received = await receive_blob(digest, request, services)
    if isinstance(received, Response):
        return received
    blob = BlobShape(digest=digest, size_bytes=received.size_bytes)
    return json_response(
        blob.model_dump(), status=200 if received.existed else 201, headers={"Location": f"/v1/blobs/{digest}"}
    )


@router.head("/blobs/{digest}", summary="Ask whether a blob is stored", response_class=Response, responses=errors(404))
async def head_blob(digest: Digest, services: Use) -> Response:
    """200 with `X-Quantry-Size-Bytes`, or 404; for an upload in pieces 404 with `Upload-Offset`, how far it is."""
    try:
        size_bytes = await asyncio.to_thread(services.blobs.size, parse_digest(digest))
    except BlobNotFound as error:
        standing = await asyncio.to_thread(services.uploads.standing, digest)
        return error_response(error, Dialect.NATIVE, headers=standing_headers(standing))
    headers = {"Content-Length": str(size_bytes), "Accept-Ranges": "bytes", "ETag": f'"{digest}"'}
    return Response(headers={"X-Quantry-Size-Bytes": str(size_bytes), **headers})


@router.post(
    "/models",
    summary="Bring a model into the store under a name",
    status_code=201,
    response_model=VariantShape,
    responses={
        202: {"model": JobShape, "description": "It takes longer; follow the job under Location."},
        **errors(404, 409, 422, 429, 502, 503, 507, body=True),
    },
)
async def import_model(body: ImportBody, request: Request, services: Use) -> Response:
    """The file is validated before anything refers to it; a file that is no model is refused whole.

    Where keys are asked for, `path` must lie in one of the folders of QUANTRY_IMPORT_FOLDERS; else 403.
    A short import is answered with its variant, a longer one with its job. With `from` it is pulled first.
    """
    job = await (_pulled(body, services) if body.source is not None else _imported(body, services))
    wait = services.jobs.wait(job.id, _wait_seconds(request, services))
    job = await unless_gone(request.receive, wait)
    if job.status not in ENDED:
        return accepted(job)
    if job.status is not JobStatus.SUCCEEDED or not job.result:
        if job.error is not None:
            raise error_from(job.error.code, job.error.message)
        raise JobFailed("The import was cancelled; send it again.")
    variant = await services.find(job.result[0])
    shape = await asyncio.to_thread(show_variant, services, variant)
    return json_response(shape.model_dump(), status=201, headers={"Location": f"/v1/variants/{variant.name}"})


def _wait_seconds(request: Request, services: Services) -> float:
    """How long the job is waited for: `Prefer` may say less than the server does."""
    preference = read_preference(request.headers.getlist("prefer"))
    longest = 0.0 if preference.respond_async else services.options.import_wait_seconds
    return longest if preference.wait_seconds is None else min(longest, preference.wait_seconds)


async def _pulled(body: ImportBody, services: Services) -> Job:
    assert body.source is not None
    job = await services.jobs.submit_pull(
        PullSpec(name=body.name or "", source=body.source, convert_to=body.convert_to)
    )
    services.ollama_pulls.discard(job.id)  # it was asked for here as well
    return job


async def _imported(body: ImportBody, services: Services) -> Job:
    assert body.name is not None
    ref = parse_ref(body.name)
    if body.digest is not None:
        parse_digest(body.digest)
        if not await asyncio.to_thread(services.blobs.has, body.digest):
            raise BlobNotFound("No blob with that digest; PUT it under /v1/blobs first.", param="digest")
    for name, digest in (body.files or {}).items():
        if not await asyncio.to_thread(services.blobs.has, parse_digest(digest)):
            raise BlobNotFound(
                f"No blob with the digest of {name[:80]!r}; PUT it under /v1/blobs first.", param="files"
            )
    path = body.path
    if path is not None:
        path = await asyncio.to_thread(admitted_path, path, services.options)
    spec = ImportSpec(
        name=ref.display,
        path=path,
        digest=body.digest,
        files=tuple(NamedBlob(name, digest) for name, digest in sorted((body.files or {}).items())),
        convert_to=body.convert_to,
        adopt=Adoption(body.adopt),
        within=services.options.import_folders if path is not None else (),
    )
    return await services.jobs.submit_import(spec)


@router.post(
    "/models/copy",
    summary="Give a variant a second name",
    status_code=201,
    responses=errors(404, 409, 507, body=True),
)
async def copy(body: CopyBody, services: Use) -> VariantShape:
    """No bytes are copied: both names share one blob."""
    destination = parse_ref(body.destination)
    try:
        source = await asyncio.to_thread(services.catalog.resolve, body.source)
    except ModelNotFound as error:
        error.param = "source"
        raise
    variant = await asyncio.to_thread(services.catalog.copy, source, destination)
    return await asyncio.to_thread(show_variant, services, variant)


@router.delete("/models/{ref:path}", summary="Delete a model, a variant, or a tag", responses=errors(404, 409))
async def delete(ref: Ref, services: Use) -> DeletedShape:
    """As `DELETE /v1/variants/{ref}`."""
    gone = await removed(services, ref)
    names = [variant.name for variant in gone]
    return DeletedShape(id=ref, object="model", variants=names, orphaned=await orphaned(services, gone))
