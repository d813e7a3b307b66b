"""`POST /v1/quantize`, `/v1/calibrate`, `/v1/evaluate` and the rebuild of a variant: the work of the laboratory.

Each body becomes one spec of a job; the runner checks it against the store and answers with the job.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from service.api.catalogue_shapes import JobShape, PlanListing
from service.api.documents import errors
from service.api.jobs import accepted
from service.api.laboratory_bodies import CalibrateBody, EvaluateBody, QuantizeBody, RebuildBody
from service.api.laboratory_specs import budget_spec, calibrate_spec, evaluate_spec, quantize_spec
from service.api.path_parameters import Ref
from service.api.planning import plan
from service.api.responses import json_response
from service.api.services import Use
from service.domain.jobs import RebuildSpec, StoredFile

router = APIRouter(prefix="/v1", tags=["laboratory"])

_THERE = {"model": JobShape, "description": "Nothing was left to do: the job has succeeded."}
_FOLLOW = {"description": "The job; follow it under Location."}


@router.post(
    "/quantize",
    summary="Make levels of a stored model, or the best mix within a budget; or plan them",
    status_code=202,
    response_model=JobShape,
    responses={
        200: {
            "model": PlanListing | JobShape,
            "description": "The plan (`dry_run`), or a job that had nothing left to do.",
        },
        202: _FOLLOW,
        **errors(404, 409, 422, 429, 503, 504, 507, body=True),
    },
)
async def quantize(body: QuantizeBody, services: Use) -> Response:
    """Levels in any case and through their aliases, from the variant named; a bare name means the one that lost least.

    `target` instead of `to` searches the mix of tensor types with the least loss within a budget; `until` makes levels
    from the largest down to the first that loses too much, and keeps the last good one. `imatrix` computes or takes an
    importance matrix first, `evaluate` measures each level once it is made, `recipe` has every option of llama.cpp's
    quantizer. `dry_run` answers with exact sizes and does nothing.
    """
    source = await services.find_source(body.model)
    if body.dry_run:
        return json_response({"object": "list", "data": await plan(services, source, body)})
    if body.target is not None:
        mix = await asyncio.to_thread(budget_spec, services, body, source)
        return accepted(await services.jobs.submit_budget(mix))
    levels = await asyncio.to_thread(quantize_spec, services, body, source)
    return accepted(await services.jobs.submit_quantize(levels))


@router.post(
    "/calibrate",
    summary="Compute, bring in or merge an importance matrix",
    status_code=202,
    response_model=JobShape,
    responses={200: _THERE, 202: _FOLLOW, **errors(404, 409, 422, 429, 503, 507, body=True)},
)
async def calibrate(body: CalibrateBody, services: Use) -> Response:
    """The result of the job is the digest of the matrix, for `imatrix` of `POST /v1/quantize`.

    Files made elsewhere, put under /v1/blobs before, are checked against the model and come in through `include`.
    """
    source = await services.find_source(body.model)
    spec = await asyncio.to_thread(calibrate_spec, services, body, source)
    return accepted(await services.jobs.submit_calibrate(spec))


@router.post(
    "/evaluate",
    summary="Measure what levels lost, how fast they are, and how well they do tasks",
    status_code=202,
    response_model=JobShape,
    responses={200: _THERE, 202: _FOLLOW, **errors(404, 409, 429, 503, 507, body=True)},
)
async def evaluate(body: EvaluateBody, services: Use) -> Response:
    """Perplexity and KL divergence as llama-perplexity has them, speed on this machine, tasks scored exactly.

    What is measured is shown as the `card` of each variant as soon as it is there.
    """
    spec = await asyncio.to_thread(evaluate_spec, services, body)
    return accepted(await services.jobs.submit_evaluate(spec))


@router.post(
    "/variants/{ref:path}/rebuild",
    summary="Make a variant again from its recipe, and compare",
    status_code=202,
    response_model=JobShape,
    responses={200: _THERE, 202: _FOLLOW, **errors(404, 409, 429, 503, 507, body=True)},
)
async def rebuild(ref: Ref, services: Use, body: RebuildBody | None = None) -> Response:
    """The job fails with `digest_mismatch` when it comes out different. A damaged file is mended by it."""
    variant = await services.find(ref)
    spec = RebuildSpec(StoredFile(variant.name, variant.digest), None if body is None else body.threads)
    return accepted(await services.jobs.submit_rebuild(spec))
