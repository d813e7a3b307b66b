"""`/v1/variants`: what is stored, what could be made of it, and its care."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.api.catalogue import show_variant
from service.api.catalogue_shapes import DeletedShape, VariantListing, VariantShape, VerifiedShape
from service.api.documents import errors
from service.api.listing import listed_variants
from service.api.path_parameters import Ref
from service.api.services import Services, Use
from service.api.shapes import MAX_TOKENS, NAME_PATTERN
from service.domain.catalog import Variant
from service.domain.errors import Busy
from service.domain.names import parse_ref
from service.store import care

router = APIRouter(prefix="/v1/variants", tags=["native"])

Model = Annotated[
    str | None,
    Query(max_length=600, description="Only this model's variants.", json_schema_extra={"pattern": NAME_PATTERN}),
]
Context = Annotated[
    int | None, Query(ge=1, le=MAX_TOKENS, description="Tokens of context that `memory_bytes` is worked out for.")
]


@router.get(
    "",
    summary="List the variants, and the levels that could be made",
    response_model=VariantListing,
    responses=errors(),
)
async def list_all(services: Use, model: Model = None, context: Context = None) -> Response:
    """`data` holds what is stored; `available` what could be made from it, with exact sizes."""

    loaded = frozenset(status.digest for status in services.pool.status() if services.pool.is_loaded(status.digest))
    known = services.listing.get(key := (services.catalog.writes_so_far, loaded, model, context))
    if known is None:
        # Megabytes: put together off the event loop.
        body = await asyncio.to_thread(listed_variants, services, model, context, loaded)
        known = services.listing.keep(key, body)
    return Response(known, media_type="application/json")


@router.post("/{ref:path}/verify", summary="Hash a variant's blob again", responses=errors(404, 429))
async def verify(ref: Ref, services: Use) -> VerifiedShape:
    """Reads the whole file. A blob that fails is quarantined and served no more; one that passes is cleared.

    `POST /v1/verify` does the same for many, as a job.
    """
    variant = await services.find(ref)
    if services.verifying.locked():
        raise Busy("Another blob is being verified; try again when that is done.", retry_after_seconds=10)
    async with services.verifying:
        began = time.monotonic()
        intact, _ = await asyncio.to_thread(care.verify, services.catalog, services.blobs, variant.digest)
        if not intact:
            services.background.start(services.pool.unload(variant), name=f"unload {variant.name}")
        return VerifiedShape(
            name=variant.name,
            digest=variant.digest,
            size_bytes=variant.size_bytes,
            intact=intact,
            duration_seconds=time.monotonic() - began,
        )


@router.get("/{ref:path}", summary="Show one variant", responses=errors(404))
async def show(ref: Ref, services: Use, context: Context = None) -> VariantShape:
    """`ref` is a name as people type it; a bare name shows the variant that it reaches."""
    variant = await services.find(ref)
    return await asyncio.to_thread(show_variant, services, variant, context)


@router.delete("/{ref:path}", summary="Delete a variant, or a tag", responses=errors(404, 409))
async def delete(ref: Ref, services: Use) -> DeletedShape:
    """A name with a level deletes that variant, a free tag only itself, a bare name the whole model.

    Generations that run end whole; then its worker ends. The file goes once nothing refers to it any more. `orphaned`
    names the variants that were made from what is gone, and cannot be made again without it. 409 for a pinned one.
    """
    gone = await removed(services, ref)
    names = [variant.name for variant in gone]
    return DeletedShape(id=ref, object="variant", variants=names, orphaned=await orphaned(services, gone))


async def removed(services: Services, ref: str) -> list[Variant]:
    """Delete what `ref` names; the variants that went with it.

    A worker whose blob nobody refers to any more ends as soon as its requests have, and frees its memory.
    """

    def delete() -> tuple[list[Variant], list[Variant]]:
        gone = services.catalog.delete(parse_ref(ref))
        return gone, [variant for variant in gone if services.catalog.blob(variant.digest) is None]

    gone, unneeded = await asyncio.to_thread(delete)
    for variant in unneeded:
        services.background.start(services.pool.unload(variant), name=f"unload {variant.name}")
    return gone


async def orphaned(services: Services, gone: Sequence[Variant]) -> list[str]:
    """The stored variants that were made from what is gone: canonical names."""
    if not gone:
        return []
    stored = await asyncio.to_thread(services.catalog.variants)
    lost = {variant.digest for variant in gone} - {variant.digest for variant in stored}
    return [variant.name for variant in stored if variant.lineage.source_digest in lost]
