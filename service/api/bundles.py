"""`/v1/models/{model}/bundle` and `/v1/bundles`: a whole model as one file, out and in."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import Field, StringConstraints

from service.api.catalogue_shapes import BundleBody, JobShape
from service.api.documents import errors
from service.api.downloads import Content, Download, FilePart, answer
from service.api.exports import ASK_AGAIN, entity_tag
from service.api.import_paths import admitted_path
from service.api.jobs import accepted
from service.api.services import Services, Use
from service.api.shapes import MODEL_PATTERN, TAGS_PATTERN
from service.domain.catalog import Variant
from service.domain.errors import BlobNotFound, InvalidName, InvalidParameter, ModelNotFound
from service.domain.jobs import BundleSpec
from service.domain.names import parse_digest, parse_ref
from service.store.bundles.gathering import gather
from service.store.bundles.packing import Packed, pack

router = APIRouter(prefix="/v1", tags=["native"])

# Each file is held open while the bundle is sent.
_MAX_FILES = 200
_TAR: dict[str, Any] = {"application/x-tar": {"schema": {"type": "string", "format": "binary"}}}

Model = Annotated[
    str,
    Path(max_length=600, description="A model: a name without a tag.", json_schema_extra={"pattern": MODEL_PATTERN}),
]
Levels = Annotated[
    list[Annotated[str, StringConstraints(max_length=300), Field(json_schema_extra={"pattern": TAGS_PATTERN})]] | None,
    Query(max_length=20, description="Only these levels or tags, with commas between them or given again."),
]


@router.get(
    "/models/{ref:path}/bundle",
    summary="Download a model with its variants",
    response_class=Response,
    responses={
        200: {"description": "A tar archive in OCI's image layout.", "content": _TAR},
        206: {"description": "The range that was asked for.", "content": _TAR},
        304: {"description": "The client has it: If-None-Match names its ETag."},
        **errors(404, 409, 416),
    },
)
async def get_bundle(ref: Model, request: Request, services: Use, levels: Levels = None) -> Response:
    """Every variant of the model: files, names, tags, lineage and what was measured; with its importance matrices,
    adapters, and what its names add. Or variants of `levels`, and what they need of that.

    The same variants give the same bytes, so that a download that broke off goes on with `Range` and `If-Range`.
    """

    def opened() -> tuple[Content, Packed]:
        packed = _packed(services, ref, levels)
        parts = [
            part if isinstance(part, bytes) else FilePart(services.blobs.path(part.digest), part.size_bytes)
            for part in packed.parts
        ]
        return Content(parts), packed

    content, packed = await asyncio.to_thread(opened)
    name = f"{parse_ref(ref).key.model}.tar"
    found = Download(entity_tag(packed.digest), name, ASK_AGAIN, media_type="application/x-tar")
    return answer(request, content, found, stall_seconds=services.options.stream_stall_seconds)


@router.head(
    "/models/{ref:path}/bundle",
    summary="Ask for the size of a bundle",
    response_class=Response,
    responses=errors(404, 409),
)
async def head_bundle(ref: Model, request: Request, services: Use, levels: Levels = None) -> Response:
    """The headers of the bundle, and none of its bytes."""
    return await get_bundle(ref, request, services, levels)


@router.post(
    "/bundles",
    summary="Take in a bundle",
    status_code=202,
    response_model=JobShape,
    responses={
        200: {"model": JobShape, "description": "Everything in it was there already."},
        **errors(404, 409, 422, 429, 503, 507, body=True),
    },
)
async def take_in(body: BundleBody, services: Use) -> Response:
    """A job: its variants are entered one by one, each file hashed and checked as an import is.

    Bytes that the store has are not written again. What a job that fails has entered stays; the same request goes on
    with what is missing. OCI layouts of others need a `name`, where they hold GGUF files.
    """
    path = body.path
    if path is not None:
        path = await asyncio.to_thread(admitted_path, path, services.options)
    elif body.digest is not None and not await asyncio.to_thread(services.blobs.has, parse_digest(body.digest)):
        raise BlobNotFound("No blob with that digest; upload it under /v1/blobs first.", param="digest")
    return accepted(await services.jobs.submit_bundle(BundleSpec(path=path, digest=body.digest, name=body.name)))


def _packed(services: Services, name: str, levels: list[str] | None) -> Packed:
    """The bundle of a model's variants. Raises ModelNotFound, BlobCorrupt, InvalidName."""
    ref = parse_ref(name)
    if ref.tag is not None:
        raise InvalidName("A bundle is of a whole model: leave the tag away, and name levels.", param="ref")
    variants = services.catalog.variants(ref.key.display)
    if not variants:
        services.catalog.resolve(ref)  # which raises with the closest names
    if levels is not None:
        variants = _chosen(services, ref.key.display, levels)
    contents = gather(services.catalog, services.laboratory, ref, variants, whole=levels is None)
    if contents.file_count > _MAX_FILES:
        raise InvalidParameter(f"A bundle has at most {_MAX_FILES} files; name the levels to take.", param="levels")
    return pack(contents)


def _chosen(services: Services, model: str, levels: list[str]) -> list[Variant]:
    found: dict[int, Variant] = {}
    for level in (word.strip() for words in levels for word in words.split(",")):
        try:
            variant = services.catalog.resolve(f"{model}:{level}")
        except (ModelNotFound, InvalidName) as error:
            error.param = "levels"
            raise
        found[variant.id] = variant
    return list(found.values())
