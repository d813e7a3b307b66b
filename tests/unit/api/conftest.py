"""The API on a real store and a real job queue, in this process; only the pool is scripted, for it needs llama.cpp."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.api import routes
from service.api.services import ApiOptions, Services
from service.domain.catalog import Adapter, FileFacts, LevelPlan, Lineage, ModelShape, Variant
from service.domain.errors import QuantryError
from service.domain.generation import (
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Timings,
    Token,
    Usage,
)
from service.domain.jobs import MadeFile
from service.domain.memory import MemoryNeed, largest_context, memory_need
from service.domain.names import parse_ref
from service.domain.recipes import Recipe
from service.domain.remote import RemoteAccess
from service.jobs.looking import Looks
from service.jobs.options import RunnerOptions
from service.jobs.queue import JobQueue
from service.jobs.runner import JobRunner
from service.jobs.wishes import Wishes
from service.metrics import Metrics
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.derived import DerivedFiles
from service.store.desired import DesiredLevels
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.piecewise import PiecewiseUploads
from service.store.presets import Presets
from service.store.stores import Stores
from service.workers.placing import LoadOptions
from service.workers.status import WorkerStatus
from service.workers.stream import Stream
from tests.databases import new_database

KEY = "a-key-of-at-least-sixteen-characters"
# Tests fetch nothing from the network.
NOWHERE = RemoteAccess(hosts=())
BASE_URL = "http://127.0.0.1:8080"
GOOD_END = Finished(FinishReason.STOP, Usage(5, 2), Timings(0.01, 0.0, 0.5, 0.25))


@dataclass
class ScriptedPool:
    """Answers every submission with the same script. `error` is raised instead; `never` leaves the stream open."""

    script: Sequence[GenerationEvent] = (Token("Hel"), Token("lo"), GOOD_END)
    error: QuantryError | None = None
    open_ended: bool = False
    draining: bool = False
    queue_depth: int = 0
    memory_budget_bytes: int = 1 << 30
    submitted: list[tuple[Variant, GenerationRequest]] = field(default_factory=list)
    adapters: list[list[str]] = field(default_factory=list)
    cancelled: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    hold: asyncio.Event | None = None
    loaded: dict[str, Variant] = field(default_factory=dict)
    asked: list[LoadOptions | None] = field(default_factory=list)
    kept: dict[str, float] = field(default_factory=dict)

    async def submit(
        self,
        variant: Variant,
        request: GenerationRequest,
        draft: Variant | None = None,
        adapters: Sequence[Adapter] = (),
    ) -> Stream:
        self.submitted.append((variant, request))
        self.adapters.append([adapter.name for adapter in adapters])
        self.entered.set()
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.error is not None:
            raise self.error
        stream = Stream(on_cancel=self._note_cancel, max_buffered_characters=1 << 20)
        if self.open_ended:
            for event in self.script:
                if isinstance(event, Token):
                    stream.put(event)
        else:
            asyncio.get_running_loop().create_task(self._play(stream))
        return stream

    def _note_cancel(self) -> None:
        self.cancelled += 1

    async def _play(self, stream: Stream) -> None:
        for event in self.script:
            stream.put(event)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def load(self, variant: Variant, asked: LoadOptions | None = None) -> None:
        self.loaded[variant.digest] = variant
        self.asked.append(asked)

    async def unload(self, variant: Variant) -> bool:
        return self.loaded.pop(variant.digest, None) is not None

    def keep(self, variant: Variant, seconds: float) -> None:
        self.kept[variant.digest] = seconds

    def keep_alive_seconds(self, digest: str) -> float:
        return self.kept.get(digest, 300.0)

    def is_loaded(self, digest: str) -> bool:
        return digest in self.loaded

    def memory_needed(self, variant: Variant, context: int | None = None) -> MemoryNeed:
        return memory_need(variant.facts, context or 512)

    memory_held_bytes: int = 0

    def room_for(self, variant: Variant, context: int, budget_bytes: int) -> tuple[MemoryNeed, int]:
        return self.memory_needed(variant, context), largest_context(variant.facts, budget_bytes)

    def status(self) -> tuple[WorkerStatus, ...]:
        return tuple(
            WorkerStatus(variant.name, digest, "ready", "full", 1, 512, 4, 1000, 0, 0, None, None, None)
            for digest, variant in self.loaded.items()
        )


@dataclass
class Api:
    """One application and what is behind it."""

    app: FastAPI
    services: Services
    pool: ScriptedPool
    queue: JobQueue
    catalog: Catalog
    blobs: BlobStore

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=BASE_URL, **kwargs)

    def put(self, content: bytes) -> str:
        """A committed blob; its digest."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        upload = self.blobs.open_upload(digest, len(content))
        upload.write(content)
        upload.finish()
        return digest

    def add(
        self,
        name: str,
        quantization: str,
        *,
        content: bytes | None = None,
        source: Variant | None = None,
        recipe: Recipe | None = None,
    ) -> Variant:
        """A committed blob and its variant. F16 gets plans for two levels."""
        content = content if content is not None else f"{name} {quantization}".encode()
        digest = self.put(content)
        shape = ModelShape("llama", 2, 64, 4, 4, 16, 16, 128, 100, context_length=512)
        facts = FileFacts(
            quantization, 1000, 16.0, 2000, shape, license="Apache-2.0", quantized_tensors=quantization != "F16"
        )
        plans = (
            (
                LevelPlan("Q4_K_M", 700, 5.0, False, ("token_embd.weight",), (("F32", 3), ("Q4_K", 9))),
                LevelPlan("IQ1_S", 300, 2.0, True, (), (), None),
            )
            if quantization == "F16"
            else ()
        )
        lineage = Lineage("imported")
        if source is not None:
            recipe = recipe or Recipe(quantization)
            lineage = Lineage("quantized", source.digest, source.name, recipe, "b1", 2.5, source.lossy)
        made = MadeFile("", digest, len(content), facts, plans)
        return self.catalog.add_variant(parse_ref(name), made, lineage)


MakeApi = Callable[..., Api]


# Applications by their options, between tests: FastAPI builds 80 routes at the first request, which takes half a
# second, and all that differs from test to test is in `state.services`.
_IDLE: dict[str, list[tuple[FastAPI, Metrics]]] = defaultdict(list)


@pytest.fixture
def make_api(tmp_path: Path) -> Iterator[MakeApi]:
    """make_api(**options): an application without keys, unless options say otherwise."""
    engines = []
    taken: list[tuple[str, FastAPI, Metrics]] = []

    def _make(**options: Any) -> Api:
        engine = new_database(tmp_path / f"{len(engines)}.db")
        engines.append(engine)
        blobs = BlobStore(tmp_path / f"blobs{len(engines)}", reserve_bytes=0)
        blobs.start()
        catalog, queue, pool = Catalog(engine), JobQueue(engine, 10), ScriptedPool()
        laboratory = Laboratory(engine)
        derived = DerivedFiles(tmp_path / f"laboratory{len(engines)}", 1 << 30)
        partials = Partials(blobs.root / "partial", 86400.0)
        partials.start()
        stores, desired = Stores(catalog, blobs, laboratory, derived, partials), DesiredLevels(engine)
        runner = JobRunner(queue, stores, RunnerOptions(access=NOWHERE))
        api_options = replace(ApiOptions(version="0.0.0", context_length=512, import_wait_seconds=0.0), **options)
        key = repr(sorted(options.items()))
        app, metrics = _IDLE[key].pop() if _IDLE[key] else (FastAPI(title="quantry", version="0.0.0"), Metrics())
        fresh = not hasattr(app.state, "services")
        taken.append((key, app, metrics))
        vars(metrics).update(vars(Metrics()))
        app.state.services = Services(
            catalog=catalog,
            blobs=blobs,
            partials=partials,
            uploads=PiecewiseUploads(blobs, partials),
            laboratory=laboratory,
            presets=Presets(engine),
            desired=desired,
            wishes=Wishes(desired, stores, queue, runner),
            jobs=runner,
            pool=pool,
            metrics=metrics,
            options=api_options,
            looks=Looks(NOWHERE),
        )
        if fresh:
            routes.install(app)
        return Api(app, app.state.services, pool, queue, catalog, blobs)

    yield _make
    for engine in engines:
        engine.dispose()
    for key, app, metrics in taken:
        _IDLE[key].append((app, metrics))


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """An application without keys, with `gloss:F16` and `gloss:Q8_0`."""
    api = make_api()
    source = api.add("gloss", "F16")
    api.add("gloss", "Q8_0", source=source)
    return api


@pytest.fixture
async def client(api: Api) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `api`."""
    async with api.client() as client:
        yield client


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """play(*events): from now on every stream brings these events, as they are."""

    def _play(*events: GenerationEvent) -> None:
        async def given(self: Stream) -> AsyncIterator[GenerationEvent]:
            for event in events:
                yield event

        monkeypatch.setattr("service.workers.stream.Stream.__aiter__", given)

    return _play


@dataclass
class RawRequest:
    """One request spoken in ASGI, to see what no client library shows: hang-ups, slow sockets, frames."""

    app: Any
    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()
    sent: list[dict[str, Any]] = field(default_factory=list)
    hang_up: asyncio.Event = field(default_factory=asyncio.Event)
    block_sends: asyncio.Event | None = None

    async def run(self) -> None:
        pending = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if pending:
                return pending.pop(0)
            await self.hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if self.block_sends is not None and message["type"] == "http.response.body":
                await self.block_sends.wait()
            self.sent.append(message)

        headers = [(b"host", b"127.0.0.1:8080"), (b"content-type", b"application/json"), *self.headers]
        await self.app(
            {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": self.method,
                "scheme": "http", "path": self.path, "raw_path": self.path.encode(), "query_string": b"",
                "root_path": "", "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080),
                "state": {},
            },
            receive,
            send,
        )  # fmt: skip

    @property
    def status(self) -> int | None:
        return next((m["status"] for m in self.sent if m["type"] == "http.response.start"), None)

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent if m["type"] == "http.response.body").decode()


@pytest.fixture
def raw(api: Api) -> Callable[..., RawRequest]:
    """raw(method, path, body): a request to `api`, or to `app`."""

    def _raw(method: str, path: str, body: bytes = b"", headers: Any = (), app: Any = None) -> RawRequest:
        return RawRequest(app or api.app, method, path, body, headers)

    return _raw
