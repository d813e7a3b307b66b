"""Ollama's dialect: what is stored and what is loaded, under `/api`: list, show, copy, delete, push."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any

from fastapi import APIRouter, Response
from pydantic import Field

from service.api.documents import errors
from service.api.listing import parts_of
from service.api.ollama_cards import card
from service.api.ollama_documents import OllamaError
from service.api.ollama_names import (
    bare_digest,
    details,
    entry,
    meant,
    names_of,
    not_found,
    preset_of,
    tagged,
)
from service.api.ollama_presets import delete_made, give_name
from service.api.ollama_shapes import OllamaCopyBody, OllamaNamedBody, OllamaShowBody, OllamaTransferBody
from service.api.ollama_templates import jinja
from service.api.remembered import Part
from service.api.responses import json_response
from service.api.services import Services, Use
from service.api.shapes import Shape
from service.api.streams import encode
from service.api.variants import removed
from service.domain.catalog import Variant
from service.domain.errors import ModelNotFound, NotSupported
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.store.rows import StoredModel
from service.workers.status import WorkerStatus

router = APIRouter(prefix="/api", tags=["ollama"])

_FOR_EVER = "2318-01-01T00:00:00Z"


class OllamaModels(Shape):
    """Models that are stored, or loaded."""

    models: list[dict[str, Any]] = Field(description="As Ollama lists them.")


class OllamaStatus(Shape):
    """How far it is; of a stream, each line."""

    status: str
    digest: str | None = None
    total: int | None = Field(None, description="Bytes.")
    completed: int | None = Field(None, description="Bytes.")


class OllamaCard(Shape):
    """All there is to know about a model."""

    license: str
    modelfile: str
    parameters: str
    template: str = Field(description="Jinja: the model's own, or that of `create`.")
    system: str
    details: dict[str, Any]
    messages: list[dict[str, Any]]
    model_info: dict[str, Any] = Field(description="The file's metadata; long arrays are null unless `verbose`.")
    capabilities: list[str]
    modified_at: str


@router.head("/tags", include_in_schema=False)
@router.get(
    "/tags", summary="List the models (Ollama)", response_model=OllamaModels, responses=errors(model=OllamaError)
)
async def tags(services: Use) -> Response:
    """One entry for each variant under its canonical name, and one for each tag; the newest first."""

    def encoded(models: Sequence[StoredModel]) -> Iterator[Part]:
        known = services.presets.all()
        for model in models:
            yield tuple(_entries(variant, known) for variant in model.variants if not variant.corrupt)

    def listed() -> bytes:
        models = services.catalog.models()
        parts = parts_of(services, "ollama", models, encoded)
        dated = [
            (variant.created_at, entries)
            for model, part in zip(models, parts, strict=True)
            for variant, entries in zip((one for one in model.variants if not one.corrupt), part, strict=True)
        ]
        dated.sort(key=itemgetter(0), reverse=True)
        return b'{"models":[%b]}' % b",".join(entries for _, entries in dated)

    return Response(await asyncio.to_thread(listed), media_type="application/json")


@router.get("/ps", summary="List what is in memory (Ollama)", responses=errors(model=OllamaError))
async def ps(services: Use) -> OllamaModels:
    """One entry for each model that is ready."""
    variants = {variant.name: variant for variant in await asyncio.to_thread(services.catalog.variants)}
    return OllamaModels(
        models=[
            _loaded_entry(services, variants[status.name], status)
            for status in services.pool.status()
            if status.state == "ready" and status.name in variants
        ]
    )


@router.post(
    "/show",
    summary="Show a model (Ollama)",
    response_model=OllamaCard,
    responses=errors(404, 409, 422, 504, body=True, model=OllamaError),
)
async def show(body: OllamaShowBody, services: Use) -> Response:
    """Its metadata comes out of the file; with `verbose` all of it, tensors and vocabulary too."""
    found = await meant(services, body.ref)
    path = services.blobs.path(found.variant.digest)
    described = await services.descriptions.of(found.variant.digest, path, arrays=bool(body.verbose))
    answer = card(body.ref, found.variant, found.preset, described, verbose=bool(body.verbose), system=body.system)
    if body.template:
        answer["template"] = jinja(body.template)
    return json_response(answer)


@router.post(
    "/copy",
    summary="Give a model a second name (Ollama)",
    response_class=Response,
    responses=errors(404, 409, 507, body=True, model=OllamaError),
)
async def copy(body: OllamaCopyBody, services: Use) -> Response:
    """No bytes are copied. A name without a tag is `:latest`."""
    source = await meant(services, body.source, param="source")
    await asyncio.to_thread(give_name, services, source.variant, tagged(parse_ref(body.destination)), source.preset)
    return Response()


@router.delete(
    "/delete",
    summary="Delete a name (Ollama)",
    response_class=Response,
    responses=errors(404, 409, body=True, model=OllamaError),
)
async def delete(body: OllamaNamedBody, services: Use) -> Response:
    """A name without a tag is `:latest`. What `create` or `copy` made for the name goes with it."""
    ref = tagged(parse_ref(body.ref))
    try:
        if await preset_of(services, ref) is None:
            await removed(services, ref.display)
        else:
            for gone in await asyncio.to_thread(delete_made, services, ref):
                await removed(services, gone)
    except ModelNotFound as error:
        raise not_found(body.ref, error) from error
    return Response()


@router.post(
    "/push",
    summary="Push a model (Ollama)",
    response_model=OllamaStatus,
    responses=errors(404, 409, body=True, model=OllamaError),
)
async def push(body: OllamaTransferBody, services: Use) -> Response:
    """Always refused: models stay here."""
    await meant(services, body.ref)
    raise NotSupported(
        "Models are not pushed to registries by this server; copy the file of its blob instead.", param="model"
    )


def _entries(variant: Variant, known: Mapping[tuple[str, str], Preset]) -> bytes:
    """The entries of a variant under each of its names, encoded."""
    folded = variant.model.folded
    return b",".join(
        encode(entry(name, variant, known.get((folded, name.rpartition(":")[2].lower())))) for name in names_of(variant)
    )


def _loaded_entry(services: Services, variant: Variant, status: WorkerStatus) -> dict[str, Any]:
    keep_seconds = services.pool.keep_alive_seconds(status.digest)
    expires = status.expires_at
    if expires is None:
        try:
            # In use: the time begins again when that ends.
            expires = (datetime.now(UTC) + timedelta(seconds=keep_seconds)).isoformat()
        except OverflowError:
            expires = _FOR_EVER
    name = next((name for name in names_of(variant) if name.endswith(":latest")), variant.name)
    return {
        "name": name,
        "model": name,
        "size": status.memory_bytes,
        "digest": bare_digest(status.digest),
        "details": details(variant, None),
        "expires_at": expires,
        "size_vram": status.memory_bytes if services.options.gpu_memory_bytes else 0,
        "context_length": status.context_length,
    }
