"""What the routes work with: the rooms of the server process and the API's own options.

Built once by app.py. The routes get it through the `Use` dependency and hold no state of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from service.api.background import Background
from service.api.on_demand import PREFERENCE, RECEIVE, made_on_demand, read_preference
from service.api.openai_store import ResponseStore
from service.api.remembered import LastAnswer, Parts
from service.domain.catalog import Variant
from service.domain.errors import BlobCorrupt, InvalidName, ModelNotFound
from service.domain.names import parse_ref
from service.domain.remote import RemoteAccess
from service.jobs.describing import Descriptions
from service.jobs.looking import Looks
from service.jobs.runner import JobRunner
from service.jobs.wishes import Wishes
from service.metrics import Metrics
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.desired import DesiredLevels
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.piecewise import PiecewiseUploads
from service.store.presets import Presets
from service.workers.pool import Pool

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """The API's part of the settings. Sizes are bytes, durations seconds, `context_length` tokens.

    `api_key_hashes` come from `auth.hash_keys`; empty means that no key is asked for. `import_folders` are absolute.
    `gpu_memory_bytes` None: no GPU is used. `job_threads`: what a job computes with when it does not say.
    `on_demand`: levels that are asked for and not there are made.
    """

    version: str
    context_length: int
    api_key_hashes: tuple[bytes, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    import_folders: tuple[str, ...] = ()
    max_body_bytes: int = 2 * MIB
    max_upload_bytes: int = 256 << 30
    body_read_timeout_seconds: float = 30.0
    stream_stall_seconds: float = 30.0
    import_wait_seconds: float = 10.0
    on_demand: bool = False
    on_demand_wait_seconds: float = 300.0
    llama_build: str | None = None
    gpu_memory_bytes: int | None = None
    job_threads: int = 1


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a route may call."""

    catalog: Catalog
    blobs: BlobStore
    partials: Partials
    uploads: PiecewiseUploads
    laboratory: Laboratory
    presets: Presets
    desired: DesiredLevels
    wishes: Wishes
    jobs: JobRunner
    pool: Pool
    metrics: Metrics
    options: ApiOptions
    background: Background = field(default_factory=Background)
    descriptions: Descriptions = field(default_factory=Descriptions)
    looks: Looks = field(default_factory=lambda: Looks(RemoteAccess()))
    responses: ResponseStore = field(default_factory=ResponseStore)
    lora_scales: dict[str, dict[str, float]] = field(default_factory=dict)  # model, folded -> digest -> scale
    listing: LastAnswer = field(default_factory=LastAnswer)
    parts: Parts = field(default_factory=Parts)
    ollama_pulls: set[str] = field(default_factory=set)  # jobs that only clients of /api/pull wait for
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)  # one re-hash at a time: it reads a whole blob

    async def find(self, name: str) -> Variant:
        """The variant that `name` reaches; ModelNotFound or InvalidName with `param` "model".

        `auto` for a tag reaches the stored level that is recommended for this machine as it is now.
        """
        return self.catalog.remembered(name) or await _resolved(self._find, name)

    async def find_source(self, name: str) -> Variant:
        """As `find`, but a bare name means the variant to quantize from: the one that has lost least."""
        return await _resolved(self.catalog.resolve_source, name)

    async def servable(self, name: str) -> Variant:
        """As `find`, but a variant whose blob is known to be corrupt raises BlobCorrupt."""
        try:
            variant = await self.find(name)
        except ModelNotFound:
            if not self.options.on_demand:
                raise
            variant = await made_on_demand(self, name)
        if variant.corrupt:
            raise BlobCorrupt(
                f"The bytes of {variant.name} no longer match their digest. Repair it (POST "
                "/v1/variants/{ref}/repair), or bring the same bytes again.",
                param="model",
            )
        return variant

    def _find(self, name: str) -> Variant:
        from service.api.automatic import recommended_now  # which reads what it is given here

        ref = parse_ref(name)
        return recommended_now(self, ref.key.display) if ref.wants_recommended else self.catalog.resolve(name)


async def _resolved(resolve: Callable[[str], Variant], name: str) -> Variant:
    try:
        return await asyncio.to_thread(resolve, name)
    except (ModelNotFound, InvalidName) as error:
        error.param = error.param or "model"
        raise


async def _services(request: Request) -> Services:  # no coroutine would be run on a thread
    services = cast("Services", request.app.state.services)
    if services.options.on_demand:
        RECEIVE.set(request.receive)
        if headers := request.headers.getlist("prefer"):
            PREFERENCE.set(read_preference(headers))
    return services


Use = Annotated[Services, Depends(_services)]
