"""`/v1/adapters`: LoRA adapters of a model, which requests name beside it."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from service.api.adapter_shapes import AdapterBody, AdapterListing, AdapterShape, GoneAdapterShape
from service.api.catalogue_shapes import JobShape
from service.api.documents import errors
from service.api.import_paths import admitted_path
from service.api.jobs import accepted
from service.api.path_parameters import Ref
from service.api.responses import error_from, json_response
from service.api.services import Services, Use
from service.api.shapes import NAME_PATTERN
from service.api.streams import unless_gone
from service.domain.adapters import NAME_PATTERN as ADAPTER_PATTERN
from service.domain.catalog import Adapter
from service.domain.errors import BlobNotFound, Conflict, JobFailed, QuantryError
from service.domain.jobs import ENDED, AdapterSpec, JobStatus, NamedBlob, StoredFile
from service.domain.names import ModelKey, parse_digest, parse_ref

router = APIRouter(prefix="/v1/adapters", tags=["native"])

Model = Annotated[
    str | None,
    Query(max_length=600, description="Only this model's adapters.", json_schema_extra={"pattern": NAME_PATTERN}),
]
Name = Annotated[str, Path(description="Name of the adapter.", pattern=f"^{ADAPTER_PATTERN}$")]


@router.get("", summary="List the adapters", responses=errors())
async def list_all(services: Use, model: Model = None) -> AdapterListing:
    """By model, oldest first. A tag in the name of the model does not count."""
    key = None if model is None else parse_ref(model).key
    found = await asyncio.to_thread(services.catalog.adapters.all, key)
    return AdapterListing(data=[adapter_shape(adapter) for adapter in found])


@router.post(
    "",
    summary="Add an adapter to a model",
    status_code=201,
    response_model=AdapterShape,
    responses={
        202: {"model": JobShape, "description": "It takes longer; follow the job under Location."},
        **errors(404, 409, 422, 429, 503, 507, body=True),
    },
)
async def add(body: AdapterBody, request: Request, services: Use) -> Response:
    """A GGUF adapter is taken as it is, a PEFT adapter (adapter_config.json, adapter_model.safetensors) is converted.

    It is checked against the variant that `model` reaches, and tried out beside it; all variants of the model can be
    asked with it. Paths are admitted as for imports.
    """
    base = await services.servable(body.model)
    for name, digest in (body.files or ({} if body.digest is None else {"digest": body.digest})).items():
        if not await asyncio.to_thread(services.blobs.has, parse_digest(digest)):
            field = "digest" if body.files is None else "files"
            raise BlobNotFound(f"No blob with the digest of {name[:80]!r}; PUT it under /v1/blobs first.", param=field)
    path = body.path
    if path is not None:
        path = await asyncio.to_thread(admitted_path, path, services.options)
    spec = AdapterSpec(
        name=body.name,
        base=StoredFile(base.name, base.digest),
        path=path,
        digest=body.digest,
        files=tuple(NamedBlob(name, digest) for name, digest in sorted((body.files or {}).items())),
        source=body.source,
        within=services.options.import_folders if path is not None else (),
    )
    job = await services.jobs.submit_adapter(spec)
    job = await unless_gone(request.receive, services.jobs.wait(job.id, services.options.import_wait_seconds))
    if job.status not in ENDED:
        return accepted(job)
    if job.status is not JobStatus.SUCCEEDED or not job.result:
        if job.error is not None:
            raise error_from(job.error.code, job.error.message)
        raise JobFailed("The job was cancelled; send the adapter again.")
    adapter = await asyncio.to_thread(services.catalog.adapters.get, base.model, job.result[0])
    location = f"/v1/adapters/{adapter.model.display}/{adapter.name}"
    return json_response(adapter_shape(adapter).model_dump(), status=201, headers={"Location": location})


@router.get("/{ref:path}/{name}", summary="Show one adapter", responses=errors(404))
async def show(ref: Ref, name: Name, services: Use) -> AdapterShape:
    """`ref` is the model's name; a tag does not count."""
    return adapter_shape(await asyncio.to_thread(_get, services, parse_ref(ref).key, name))


@router.delete("/{ref:path}/{name}", summary="Delete an adapter", responses=errors(404, 409))
async def delete(ref: Ref, name: Name, services: Use) -> GoneAdapterShape:
    """Generations that use it end whole. 409 while a name made by `/api/create` has it: delete that name."""

    def deleted() -> Adapter:
        key = parse_ref(ref).key
        adapter = _get(services, key, name)
        users = [
            f"{adapter.model.display}:{word}"
            for word, preset in services.presets.of_model(parse_ref(key.display)).items()
            if any(use.name.lower() == adapter.name.lower() for use in preset.adapters)
        ]
        if users:
            raise Conflict(f"{users[0]} was made with {adapter.name}; delete that name instead.", param="name")
        return services.catalog.adapters.delete(key, name)

    adapter = await asyncio.to_thread(deleted)
    return GoneAdapterShape(id=adapter.name, model=adapter.model.display)


def adapter_shape(adapter: Adapter) -> AdapterShape:
    """An adapter as the API shows it."""
    facts = adapter.facts
    return AdapterShape(
        name=adapter.name,
        model=adapter.model.display,
        digest=adapter.digest,
        size_bytes=adapter.size_bytes,
        architecture=facts.architecture,
        rank=facts.rank,
        alpha=facts.alpha,
        tensors=facts.tensors,
        parameters=facts.parameters,
        general_name=facts.general_name,
        corrupt=adapter.corrupt,
        created_at=adapter.created_at,
    )


def _get(services: Services, key: ModelKey, name: str) -> Adapter:
    try:
        return services.catalog.adapters.get(key, name)
    except QuantryError as error:
        error.param = "name"
        raise
