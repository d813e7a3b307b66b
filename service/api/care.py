"""`/v1/verify`, `/v1/prune`, `/v1/store`, pins and repairs: the store looked after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Response

from service.api.care_shapes import LeavingShape, PruneBody, PruneShape, StoreShape, VerifyBody
from service.api.catalogue import show_variant
from service.api.catalogue_shapes import JobShape, VariantShape
from service.api.documents import errors
from service.api.jobs import accepted
from service.api.path_parameters import Ref
from service.api.services import Services, Use
from service.domain.jobs import VerifySpec
from service.domain.quants import parse_label
from service.store import pruning

router = APIRouter(prefix="/v1", tags=["care"])

_DAY_SECONDS = 86400.0
_FOLLOW = {"description": "The job; follow it under Location."}
_THERE = {"model": JobShape, "description": "Nothing was left to do: the job has succeeded."}


@router.post(
    "/verify",
    summary="Read blobs again and compare their digests",
    status_code=202,
    response_model=JobShape,
    responses={200: _THERE, 202: _FOLLOW, **errors(404, 429, 503, body=True)},
)
async def verify(services: Use, body: VerifyBody | None = None) -> Response:
    """A damaged blob is quarantined as soon as it is found: nothing serves it from then on.

    The result of the job is the digests of the damaged ones. With `repair` the ids of the jobs follow that make or
    fetch them again.
    """
    asked = body or VerifyBody()
    return accepted(await services.jobs.submit_verify(VerifySpec(models=tuple(asked.models), repair=asked.repair)))


@router.post(
    "/variants/{ref:path}/repair",
    summary="Make or fetch a damaged variant's bytes again",
    status_code=202,
    response_model=JobShape,
    responses={200: _THERE, 202: _FOLLOW, **errors(404, 409, 429, 503, 507)},
)
async def repair(ref: Ref, services: Use) -> Response:
    """From its recipe, or from where it was pulled; 409 with what to do where neither is known.

    A variant that is not known to be damaged is read first, by a job that repairs it if need be.
    """
    return accepted(await services.jobs.repair(await services.find(ref)))


@router.post("/variants/{ref:path}/pin", summary="Keep a variant from being deleted", responses=errors(404, 507))
async def pin(ref: Ref, services: Use) -> VariantShape:
    """It is not pruned, and deleting it is refused, until it is unpinned."""
    return await _pinned(services, ref, pinned=True)


@router.delete("/variants/{ref:path}/pin", summary="Let a variant be deleted again", responses=errors(404, 507))
async def unpin(ref: Ref, services: Use) -> VariantShape:
    """The opposite of `POST`."""
    return await _pinned(services, ref, pinned=False)


@router.post("/prune", summary="Make room: say what could go, or remove it", responses=errors(404, 507, body=True))
async def prune(services: Use, body: PruneBody | None = None) -> PruneShape:
    """What would go, with bytes and reasons; with `dry_run` false exactly that goes.

    Variants go only where `unused_days` or `levels` ask for it, and only those that can be made again from a stored
    source; never one that is pinned, tagged, in memory, wished for, or that others were made from.
    """
    asked = body or PruneBody()
    rules = await asyncio.to_thread(_rules, services, asked)
    uses = await _uses(services)
    leaving: Sequence[pruning.Leaving] = await asyncio.to_thread(pruning.plan, services, rules, uses)
    if not asked.dry_run:
        leaving = await asyncio.to_thread(pruning.carry_out, services, leaving, rules)
    return PruneShape(
        dry_run=asked.dry_run,
        size_bytes=sum(one.size_bytes for one in leaving),
        data=[
            LeavingShape(kind=one.kind.value, name=one.name, size_bytes=one.size_bytes, reason=one.reason)
            for one in leaving
        ],
    )


@router.get("/store", summary="What the store holds and may still hold", responses=errors())
async def store(services: Use) -> StoreShape:
    """Counts, bytes, quota, damage. Reads the folders, so it takes a moment on a large store."""
    return await asyncio.to_thread(_store, services)


async def _pinned(services: Services, ref: str, *, pinned: bool) -> VariantShape:
    variant = await services.find(ref)
    variant = await asyncio.to_thread(services.catalog.pin, variant, pinned)
    return await asyncio.to_thread(show_variant, services, variant)


def _rules(services: Services, asked: PruneBody) -> pruning.Rules:
    models = (services.catalog.resolve(name).model.folded for name in asked.models)
    return pruning.Rules(
        age_seconds=asked.age_seconds,
        unused_seconds=None if asked.unused_days is None else asked.unused_days * _DAY_SECONDS,
        levels=frozenset(parse_label(level, param="levels") for level in asked.levels),
        models=frozenset(models),
    )


async def _uses(services: Services) -> pruning.Uses:
    def wished() -> dict[str, frozenset[str]]:
        wishes = ((key, services.desired.get(key)) for key in services.desired.models())
        return {key.folded: frozenset(wish[0].levels) for key, wish in wishes if wish is not None}

    return pruning.Uses(
        by_jobs=await services.jobs.needed_digests(),
        in_memory=frozenset(status.digest for status in services.pool.status() if status.state != "stopped"),
        wished=await asyncio.to_thread(wished),
    )


def _store(services: Services) -> StoreShape:
    catalog, blobs = services.catalog, services.blobs
    variants, rows = catalog.variants(), catalog.blobs()
    inside, quarantined = blobs.stored(), blobs.quarantined()
    outside = [row for row in rows if row.outside is not None and row.digest not in inside]
    hashed = [row.verified_at or row.created_at for row in rows if not row.corrupt]
    return StoreShape(
        models=len({variant.model.folded for variant in variants}),
        variants=len(variants),
        pinned=sum(variant.pinned for variant in variants),
        blobs=len(inside),
        blob_bytes=sum(status.st_size for status in inside.values()),
        outside=len(outside),
        outside_bytes=sum(row.size_bytes for row in outside),
        transfers_bytes=blobs.incoming_bytes() + services.partials.total_bytes(),
        quarantined=len(quarantined),
        quarantined_bytes=sum(status.st_size for status in quarantined.values()),
        damaged=[variant.name for variant in variants if variant.corrupt],
        taken_bytes=blobs.taken_bytes(),
        quota_bytes=blobs.quota_bytes,
        free_bytes=blobs.free_bytes(),
        reserve_bytes=blobs.reserve_bytes,
        room_bytes=max(0, blobs.room_bytes()),
        oldest_verified_at=min(hashed, default=None),
    )
