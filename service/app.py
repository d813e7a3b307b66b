"""Composition root of the server process: settings in, a running server out. Nothing here decides anything.

Start: lock the home, open the database, clean temporary files, enter the built-in datasets, recover jobs, start runner
and pool, sweep blobs.
Stop: take no new requests, let streams end, stop jobs (they go back to the queue), end workers, release the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from service import __version__, machine
from service.api import routes
from service.api.auth import hash_keys
from service.api.catalogue import smaller_levels
from service.api.connections import Connection
from service.api.openai_store import ResponseStore
from service.api.services import ApiOptions, Services
from service.domain.memory import CacheChoice
from service.domain.remote import DEFAULT_HUB_URL, DEFAULT_REGISTRY_URL, RemoteAccess
from service.domain.secrets import Secret
from service.jobs.looking import Looks
from service.jobs.options import RunnerOptions
from service.jobs.queue import JobQueue
from service.jobs.runner import JobRunner
from service.jobs.scrubbing import scrub
from service.jobs.wishes import Wishes
from service.logs import configure_logs
from service.metrics import Metrics
from service.settings import Settings
from service.startup import lasting
from service.store import care
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.database import open_database
from service.store.datasets import enter_built_in
from service.store.derived import DerivedFiles
from service.store.desired import DesiredLevels
from service.store.home import lock_home
from service.store.laboratory import Laboratory
from service.store.partials import Partials
from service.store.piecewise import PiecewiseUploads
from service.store.stores import Stores
from service.workers.options import PoolOptions, WorkerOptions
from service.workers.pool import Pool

log = structlog.get_logger("app")

SERVER_FILE = "server.json"  # in the home: process id and address of the running server
LABORATORY_FOLDER = "laboratory"  # in the home: what can be computed again
PARTIAL_FOLDER = "partial"  # beside the blobs: transfers under way
_SWEEP_SECONDS = 600.0


def create_app(settings: Settings) -> FastAPI:
    """The server as an ASGI application."""
    _make_home(settings)
    app = FastAPI(
        title="quantry",
        version=__version__,
        description="Quantize GGUF language models, see what each level costs, and serve any of them.",
        lifespan=_lifespan,
    )
    engine = open_database(settings.database)
    catalog = Catalog(engine)
    partials = Partials(settings.blob_folder / PARTIAL_FOLDER, settings.partial_age_seconds)
    blobs = BlobStore(
        settings.blob_folder,
        settings.disk_reserve_bytes,
        quota_bytes=settings.store_quota_bytes or None,
        other_bytes=partials.total_bytes,
    )
    laboratory = Laboratory(engine)
    derived = DerivedFiles(settings.home / LABORATORY_FOLDER, settings.laboratory_bytes)
    queue = JobQueue(engine, settings.max_queued_jobs)
    pool = Pool(
        _pool_options(settings),
        path_of=partial(care.loadable, catalog, blobs),
        rungs=catalog,
        smaller_levels=partial(smaller_levels, catalog),
        on_use=catalog.note_use,
    )
    access = _remote_access(settings)
    stores = Stores(catalog, blobs, laboratory, derived, partials)
    desired = DesiredLevels(engine)
    runner = JobRunner(
        queue,
        stores,
        RunnerOptions(
            concurrency=settings.job_concurrency,
            threads=_job_threads(settings),
            pulls=settings.pull_concurrency,
            access=access,
            memory_bytes=pool.memory_budget_bytes,
            is_serving=lambda: pool.is_serving,
            on_damaged=partial(_unload_damaged, app),
        ),
    )
    app.state.settings = settings
    app.state.queue = queue
    app.state.services = Services(
        catalog=catalog,
        blobs=blobs,
        partials=partials,
        uploads=PiecewiseUploads(blobs, partials),
        laboratory=laboratory,
        presets=catalog.presets,
        desired=desired,
        wishes=Wishes(desired, stores, queue, runner),
        jobs=runner,
        pool=pool,
        metrics=Metrics(),
        looks=Looks(access, pool.memory_budget_bytes),
        options=_api_options(settings),
        responses=ResponseStore(
            most=settings.stored_responses,
            most_bytes=settings.stored_responses_bytes,
            seconds=settings.stored_responses_seconds,
        ),
    )
    routes.install(app)
    return app


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises Conflict when another server holds the home."""
    configure_logs(settings.log_level, settings.log_format)
    _make_home(settings)
    lock = lock_home(settings.home)  # before the database is looked at, which may have to be brought up to date
    with lasting():
        app = create_app(settings)
    app.state.home_lock = lock
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=Connection,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 2,
    )
    server = _Server(config, settings.home / SERVER_FILE, app.state.services.pool)
    server.run()
    return 0 if server.started else 1


def _make_home(settings: Settings) -> None:
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)


class _Server(uvicorn.Server):
    """uvicorn that says where it listens, and starts draining the moment it is told to stop."""

    def __init__(self, config: uvicorn.Config, server_file: Path, pool: Pool) -> None:
        super().__init__(config)
        self._server_file = server_file
        self._pool = pool
        self._told_by: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.started or not self.servers:
            return
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._server_file.write_text(json.dumps({"pid": os.getpid(), "url": url}))
        log.info("listening", url=url, version=__version__)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Unlike uvicorn, which raises the signal again after shutdown, we end with status 0; a second signal hurries.
        self.force_exit = self.should_exit
        self.should_exit = True
        self._pool.begin_drain()
        self._told_by = signal.Signals(sig)  # not logged here: it may come amidst the writing of a log line

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("draining", signal=self._told_by.name if self._told_by else None)
        self._server_file.unlink(missing_ok=True)
        await super().shutdown(sockets=sockets)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    settings: Settings = app.state.settings
    with getattr(app.state, "home_lock", None) or lock_home(settings.home):
        app.state.loop = asyncio.get_running_loop()
        removed = await asyncio.to_thread(services.blobs.start)
        await asyncio.to_thread(services.partials.start)
        await asyncio.to_thread(care.start, services.catalog, services.blobs)
        await asyncio.to_thread(enter_built_in, services.blobs, services.laboratory)
        await services.jobs.start()
        await services.pool.start()
        await services.wishes.start()
        sweeper = asyncio.create_task(_sweep(app))
        scrubber = asyncio.create_task(
            scrub(
                services.catalog,
                app.state.queue,
                services.jobs,
                days=settings.scrub_days,
                is_serving=lambda: services.pool.is_serving,
            )
        )
        log.info("started", temps_removed=removed, memory_budget_bytes=services.pool.memory_budget_bytes)
        try:
            yield
        finally:
            scrubber.cancel()
            sweeper.cancel()
            await services.wishes.stop()
            await services.pool.stop(settings.drain_seconds)
            await services.jobs.stop()
            log.info("stopped")


def _unload_damaged(app: FastAPI, digest: str) -> None:
    """Take a model out of memory whose blob was found damaged, once its requests have ended. From any thread."""
    services: Services = app.state.services

    def unload() -> None:
        services.background.start(services.pool.unload_blob(digest), name=f"unload {digest}")

    app.state.loop.call_soon_threadsafe(unload)


async def _sweep(app: FastAPI) -> None:
    """Delete blobs that nothing refers to, now and every ten minutes. Rows go first, then files.

    And transfers that nobody goes on with.
    """
    services: Services = app.state.services
    queue: JobQueue = app.state.queue
    grace = app.state.settings.blob_grace_seconds

    def sweep_once() -> list[str]:
        services.partials.prune()
        keep = queue.active_digests()
        # What this process was asked for lately stays, though the wall clock may have jumped since.
        services.catalog.forget_unused(keep | services.blobs.used_within(grace), grace)
        return services.blobs.sweep(keep | services.catalog.referenced_digests(), grace)

    while True:
        try:
            removed = await asyncio.to_thread(sweep_once)
            if removed:
                log.info("swept", blobs=len(removed))
        except Exception:
            log.exception("sweep failed")
        await asyncio.sleep(_SWEEP_SECONDS)


def _pool_options(settings: Settings) -> PoolOptions:
    worker = WorkerOptions(
        batch_tokens=settings.batch_tokens,
        threads=settings.threads or machine.usable_cores(),
        gpu_layers=settings.gpu_layers,
        load_timeout_seconds=settings.load_timeout_seconds,
        hang_seconds=settings.worker_hang_seconds,
        max_token_gap_seconds=settings.max_token_gap_seconds,
        prefix_cache=settings.prefix_cache == "on",
        speculation=settings.speculation == "on",
    )
    return PoolOptions(
        worker=worker,
        machine=machine.machine_id(),
        context_length=settings.context_length,
        parallel=settings.parallel,
        memory_budget_bytes=settings.memory_budget_bytes or machine.default_memory_budget_bytes(),
        max_loaded_models=settings.max_loaded_models,
        max_queued_requests=settings.max_queued_requests,
        keep_alive_seconds=settings.keep_alive_seconds,
        queue_timeout_seconds=settings.queue_timeout_seconds,
        cache_type_k=CacheChoice(settings.cache_type_k),
        cache_type_v=CacheChoice(settings.cache_type_v),
        flash_attention=settings.flash_attention == "auto",
    )


def _remote_access(settings: Settings) -> RemoteAccess:
    token = settings.hub_token.get_secret_value() if settings.hub_token else ""
    defaults = {settings.hub_url: DEFAULT_HUB_URL, settings.registry_url: DEFAULT_REGISTRY_URL}
    return RemoteAccess(
        # A hub or a registry of the operator's own is trusted as it is.
        hosts=(*settings.pull_hosts, *(url for url, default in defaults.items() if url != default)),
        hub=settings.hub_url,
        registry=settings.registry_url,
        hub_token=Secret(token) if token else None,
        connections=settings.pull_connections,
        bytes_per_second=settings.pull_bytes_per_second,
        stall_seconds=settings.pull_stall_seconds,
    )


def _api_options(settings: Settings) -> ApiOptions:
    return ApiOptions(
        version=__version__,
        context_length=settings.context_length,
        api_key_hashes=hash_keys([key.get_secret_value() for key in settings.api_keys]),
        allowed_hosts=settings.allowed_hosts,
        import_folders=settings.import_folders,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        body_read_timeout_seconds=settings.body_read_timeout_seconds,
        stream_stall_seconds=settings.stream_stall_seconds,
        import_wait_seconds=settings.import_wait_seconds,
        on_demand=settings.on_demand == "on",
        on_demand_wait_seconds=settings.on_demand_wait_seconds,
        llama_build=f"llama-cpp-python {machine.binding_version()}",
        gpu_memory_bytes=None if settings.gpu_layers == 0 else machine.gpu_memory_bytes(),
        job_threads=_job_threads(settings),
    )


def _job_threads(settings: Settings) -> int:
    return settings.job_threads or machine.usable_cores()
