"""Ollama's dialect: `POST /api/create` and the blobs it is made of. Models come from stored ones or from files.

The slow parts are jobs; a client that leaves before the end cancels the one that runs, and no name is made.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.documents import errors
from service.api.ollama_adapters import adapter_spec, check_files
from service.api.ollama_documents import LINES, OllamaError
from service.api.ollama_models import OllamaStatus
from service.api.ollama_names import meant, tagged
from service.api.ollama_presets import give_name
from service.api.ollama_requests import domain_messages
from service.api.ollama_shapes import OllamaCreateBody
from service.api.ollama_statuses import drained, lines
from service.api.ollama_templates import jinja
from service.api.path_parameters import Digest
from service.api.responses import error_from, json_response
from service.api.services import Services, Use
from service.api.streams import LineStream, unless_gone
from service.api.uploads import receive_blob
from service.domain.catalog import Adapter, Variant
from service.domain.errors import BlobNotFound, InvalidParameter, JobFailed, ModelNotFound, QuantryError
from service.domain.generation import AdapterUse
from service.domain.jobs import ENDED, AdapterSpec, ImportSpec, Job, JobStatus, NamedBlob, QuantizeSpec
from service.domain.names import ModelRef, check_not_reserved, parse_digest, parse_ref
from service.domain.presets import Preset
from service.domain.quants import find_label

router = APIRouter(prefix="/api", tags=["ollama"])

# What Ollama sends for a layer that has no digest yet.
_NO_DIGEST = "0" * 19


@router.head("/blobs/{digest}", include_in_schema=False)
async def head_blob(digest: Digest, services: Use) -> Response:
    """200, or 404."""
    if not await asyncio.to_thread(services.blobs.has, parse_digest(digest)):
        raise BlobNotFound("No blob with that digest; POST it first.")
    return Response()


@router.post(
    "/blobs/{digest}",
    summary="Upload a file by its content (Ollama)",
    status_code=201,
    response_class=Response,
    responses={
        200: {"description": "It was there already; the bytes sent have been checked."},
        **errors(408, 413, 415, 507, model=OllamaError),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def post_blob(digest: Digest, request: Request, services: Use) -> Response:
    """The body is the file, streamed. Bytes that do not match the digest are refused and nothing is stored."""
    received = await receive_blob(digest, request, services)
    if isinstance(received, Response):
        return received
    return Response(status_code=200 if received.existed else 201)


@router.post(
    "/create",
    summary="Create a model (Ollama)",
    response_model=OllamaStatus,
    responses={
        200: {"description": "How far it is, in lines unless `stream` is false.", "content": LINES},
        **errors(404, 409, 422, 503, 507, body=True, model=OllamaError),
    },
)
async def create(body: OllamaCreateBody, request: Request, services: Use) -> Response:
    """From a stored model, an uploaded GGUF file or the files of a checkpoint, quantized to any level.

    It gets words and parameters of its own.

    `template` is Jinja. What is made for the name is deleted with it.
    """
    body.check()
    making = await _prepared(services, body)
    if body.stream is False:
        await unless_gone(request.receive, drained(_statuses(services, making)))
        return json_response({"status": "success"})
    return LineStream(
        lines(_statuses(services, making)), close=lambda: None, stall_seconds=services.options.stream_stall_seconds
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """A job, and whether it was begun for this request; else it was under way for somebody else."""

    job: Job
    is_ours: bool


@dataclass(frozen=True, slots=True)
class _Making:
    """What is to be made: a name, its preset, and the source: a variant, or the job that imports it."""

    ref: ModelRef
    preset: Preset
    level: str | None
    source: Variant | None
    work: _Work | None  # the first job: an import, or a quantize job where there is a source
    known: frozenset[int]  # variants of the model, and of the source's, that were there before
    adapter: Mapping[str, str]  # files of an adapter: names and digests


async def _prepared(services: Services, body: OllamaCreateBody) -> _Making:
    """Everything that can be refused before the first byte."""
    ref = tagged(parse_ref(body.ref))
    check_not_reserved(ref.flavour)
    level = None if body.level is None else _level(body.level)
    adapter = body.adapters or {}
    await check_files(services, adapter)
    before = await asyncio.to_thread(services.catalog.variants, ref.key.display)
    known = frozenset(variant.id for variant in before)
    if body.from_name is None:
        preset = _preset(body, Preset())
        spec = await _import(services, body, ref, level)
        return _Making(ref, preset, level, None, await _begun(services, spec), known, adapter)
    found = await meant(services, body.from_name, param="from")
    siblings = await asyncio.to_thread(services.catalog.variants, found.variant.model.display)
    known |= frozenset(variant.id for variant in siblings)
    preset = _preset(body, replace(found.preset, parent=found.ref.display))
    source = found.variant
    if level is not None and source.quantization != level:
        # A bare name means the variant to quantize from: the one that has lost least.
        source = await services.find_source(body.from_name)
    work: _Work | None = None
    if level is not None and source.quantization != level:
        work = await _begun(services, QuantizeSpec(source.name, source.digest, (level,)))
    return _Making(ref, preset, level, source, work, known, adapter)


async def _begun(services: Services, spec: ImportSpec | QuantizeSpec | AdapterSpec) -> _Work:
    return _Work(*await services.jobs.begin(spec))


def _level(written: str) -> str:
    """A level in canonical spelling; an unknown one as it is, for the queue to refuse with the list of all."""
    return find_label(written) or written.upper()


async def _import(services: Services, body: OllamaCreateBody, ref: ModelRef, level: str | None) -> ImportSpec:
    files = body.files or {}
    for name, digest in files.items():
        try:
            there = await asyncio.to_thread(services.blobs.has, parse_digest(digest))
        except QuantryError as error:
            raise InvalidParameter(f"files: {error.message}", param="files") from error
        if not there:
            message = f"No blob with the digest of {name[:100]!r}; POST it under /api/blobs first."
            raise BlobNotFound(message, param="files")
    # A level in the name is that of what is made in the end.
    label = ref.label if level is None else None
    tag = "-".join(part for part in (ref.flavour, label) if part)
    blobs = tuple(NamedBlob(name, digest) for name, digest in sorted(files.items()))
    return ImportSpec(name=f"{ref.key.display}:{tag}" if tag else ref.key.display, files=blobs)


def _preset(body: OllamaCreateBody, base: Preset) -> Preset:
    """What the body says, and where it says nothing what the source's name adds already."""
    parameters = {} if body.parameters is None else body.parameters.model_dump(exclude_none=True)
    return replace(
        base,
        system=base.system if body.system is None else body.system,
        template=jinja(body.template) if body.template else base.template,
        parameters={**base.parameters, **parameters},
        licenses=body.licenses or base.licenses,
        messages=domain_messages(body.messages) if body.messages else base.messages,
        owned=(),
    )


async def _statuses(services: Services, making: _Making) -> AsyncGenerator[dict[str, Any], None]:
    """The statuses, in Ollama's order and words. Raises what the jobs end with."""
    source, work = making.source, making.work
    if source is None:
        assert work is not None
        is_checkpoint = isinstance(work.job.spec, ImportSpec) and bool(work.job.spec.files)
        yield {"status": "converting model" if is_checkpoint else "parsing GGUF"}
        source = await services.find(_result(await _ended(services, work)))
        work = None
        if making.level is not None and source.quantization != making.level:
            work = await _begun(services, QuantizeSpec(source.name, source.digest, (making.level,)))
    variant = source
    if work is not None:
        job = work.job
        total = await asyncio.to_thread(_planned_bytes, services, source, making.level)
        status = f"quantizing {source.quantization} model to {making.level}"
        async with aclosing(_followed(services, work)) as jobs:
            async for job in jobs:
                completed = int(job.progress * total)
                yield {"status": status, "digest": _NO_DIGEST, "total": total, "completed": completed}
        variant = await services.find(_result(job))
        yield {"status": "verifying conversion"}
    brought = frozenset({variant.id, source.id}) - making.known
    preset = making.preset
    taken: Adapter | None = None
    if making.adapter:
        there = await asyncio.to_thread(services.catalog.adapters.all, variant.model)
        spec = adapter_spec(making.ref, variant, making.adapter)
        yield {"status": "converting adapter" if spec.files else "creating adapter layer"}
        added = _result(await _ended(services, await _begun(services, spec)))
        found = await asyncio.to_thread(services.catalog.adapters.get, variant.model, added)
        preset = replace(preset, adapters=(AdapterUse(found.name),))
        taken = None if any(other.name == found.name for other in there) else found
    named: Variant | None = None
    try:
        named = await asyncio.to_thread(give_name, services, variant, making.ref, preset, brought)
    finally:
        # It was tried out within the source's model, which is to stay as it was.
        if taken is not None and (named is None or taken.model.folded != named.model.folded):
            await asyncio.to_thread(services.catalog.adapters.delete, taken.model, taken.name)
    if work is not None and work.is_ours and variant.id in brought and variant.id != named.id:
        # The level was made within the source's model, which is to stay as it was; the file is the new name's now.
        await asyncio.to_thread(services.catalog.delete, parse_ref(variant.name))
    yield {"status": f"{'using existing' if work is None else 'creating new'} layer {named.digest}"}
    for text in _texts(making.preset):
        yield {"status": f"creating new layer sha256:{hashlib.sha256(text.encode()).hexdigest()}"}
    yield {"status": "writing manifest"}
    yield {"status": "success"}


async def _followed(services: Services, work: _Work) -> AsyncGenerator[Job, None]:
    """The job as it goes on, to its end. Raises its error. Whoever stops listening before the end cancels it."""
    job = work.job
    try:
        if job.status not in ENDED:
            async with aclosing(services.jobs.subscribe(job.id)) as events:
                async for event in events:
                    job = event.job
                    yield job
            job = await services.jobs.get(job.id)
        yield job
    finally:
        if job.status not in ENDED and work.is_ours:
            services.background.start(services.jobs.cancel(job.id), name=f"cancel {job.id}")
    if job.error is not None:
        raise error_from(job.error.code, job.error.message)
    if job.status is not JobStatus.SUCCEEDED:
        raise JobFailed("The job was cancelled; send the request again.")


async def _ended(services: Services, work: _Work) -> Job:
    """The job at its end. Raises its error. Whoever stops waiting before cancels it."""
    ended = work.job
    async with aclosing(_followed(services, work)) as jobs:
        async for job in jobs:
            ended = job
    return ended


def _result(job: Job) -> str:
    if not job.result:
        raise ModelNotFound("The job has made nothing; send the request again.")
    return job.result[0]


def _planned_bytes(services: Services, source: Variant, level: str | None) -> int:
    plans = services.catalog.plans(source.digest)
    return next((plan.size_bytes for plan in plans if plan.quantization == level), source.size_bytes)


def _texts(preset: Preset) -> list[str]:
    texts = [preset.template, preset.system, *preset.licenses]
    return [text for text in texts if text]
