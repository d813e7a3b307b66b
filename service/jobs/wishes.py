"""Sees to it that the levels that are wished for get made. Server process, on its loop.

What is missing of a model goes into one job; what failed is left alone for a while (`domain/desired.py`). It looks when
a wish changes and twice a minute: levels are deleted, sources imported and jobs ended in many places.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from service.domain.catalog import Variant
from service.domain.datasets import CALIBRATION, DatasetRef
from service.domain.desired import AUTO, Desired, DesiredLevel, hindered, progress_of, to_make
from service.domain.errors import QuantryError
from service.domain.jobs import CalibrateOptions, QuantizeSpec
from service.domain.names import ModelKey
from service.domain.recipes import Recipe
from service.jobs.admission import admit
from service.jobs.queue import JobQueue
from service.jobs.runner import JobRunner
from service.store.desired import DesiredLevels
from service.store.stores import Stores

_LOOK_SECONDS = 30.0
_JOBS_LOOKED_AT = 1000

_log = structlog.get_logger("wishes")


class Wishes:
    """The wishes of one server. Methods are called on its event loop; they read the database in threads."""

    def __init__(self, desired: DesiredLevels, stores: Stores, queue: JobQueue, runner: JobRunner) -> None:
        self._desired = desired
        self._stores = stores
        self._queue = queue
        self._runner = runner
        self._keeper: asyncio.Task[None] | None = None
        self._hindrances: dict[ModelKey, str] = {}  # why nothing could be queued, at the last look

    async def start(self) -> None:
        """Begin to look. The runner has been started."""
        self._keeper = asyncio.create_task(self._keep(), name="wishes")

    async def stop(self) -> None:
        """Look no more; jobs that were queued stay."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def put(self, model: ModelKey, wish: Desired) -> None:
        """Take in a wish and queue what it needs. Raises ModelNotFound, and what `submit_quantize` raises.

        The wish stands also where its job could not be queued; it is tried again.
        """
        await asyncio.to_thread(self._desired.put, model, wish)
        await self.make(model)

    async def make(self, model: ModelKey) -> None:
        """Queue what is missing of a model. Raises what `submit_quantize` raises."""
        try:
            spec = await asyncio.to_thread(self._missing, model)
            if spec is not None:
                await self._runner.submit_quantize(spec)
        except QuantryError as problem:
            if self._hindrances.get(model) != problem.message:  # twice a minute would tell nobody more
                _log.warning("a wish has to wait", model=model.display, problem=problem.message)
            self._hindrances[model] = problem.message
            raise
        self._hindrances.pop(model, None)

    def progress(self, model: ModelKey) -> tuple[Desired, str, tuple[DesiredLevel, ...]] | None:
        """The wish for a model, since when, and how far it has come; None when nothing is wished for. Blocks."""
        found = self._desired.get(model)
        if found is None:
            return None
        wish, wished_at = found
        source = self._stores.catalog.resolve_source(model.display)
        levels = self._levels(wish, wished_at, source)
        return wish, wished_at, hindered(levels, self._hindrances.get(model))

    async def _keep(self) -> None:
        while True:
            try:
                models = await asyncio.to_thread(self._desired.models)
                self._hindrances = {model: why for model, why in self._hindrances.items() if model in models}
                for model in models:
                    # A full disk or queue passes, and a model may just have been deleted.
                    with suppress(QuantryError):
                        await self.make(model)
            except Exception:
                _log.exception("wishes could not be looked at; trying again")
            await asyncio.sleep(_LOOK_SECONDS)

    def _missing(self, model: ModelKey) -> QuantizeSpec | None:
        found = self._desired.get(model)
        if found is None:
            return None
        wish, wished_at = found
        source = self._stores.catalog.resolve_source(model.display)
        labels = to_make(self._levels(wish, wished_at, source))
        return self._spec(wish, source, labels) if labels else None

    def _levels(self, wish: Desired, wished_at: str, source: Variant) -> tuple[DesiredLevel, ...]:
        catalog = self._stores.catalog
        plans = {plan.quantization: plan for plan in catalog.plans(source.digest)}

        def refusal(label: str) -> str | None:
            try:
                admit(self._spec(wish, source, (label,)), source, plans, ())
            except QuantryError as problem:
                return problem.message
            return None

        siblings = catalog.variants(source.model.display)
        there = {variant.quantization for variant in siblings}
        # Most wishes are fulfilled most of the time, and then no job matters.
        jobs = [] if there.issuperset(wish.levels) else self._queue.list(limit=_JOBS_LOOKED_AT)
        return progress_of(wish, wished_at, source, siblings, jobs, refusal, datetime.now(UTC))

    def _spec(self, wish: Desired, source: Variant, labels: tuple[str, ...]) -> QuantizeSpec:
        computed = wish.importance_matrix == AUTO
        recipe = Recipe(
            allow_requantize=wish.allow_requantize, importance_matrix=None if computed else wish.importance_matrix
        )
        calibrate = None
        if computed:
            text = self._stores.laboratory.dataset(CALIBRATION)
            calibrate = CalibrateOptions(DatasetRef(text.name, text.digest))
        return QuantizeSpec(source.name, source.digest, labels, recipe=recipe, calibrate=calibrate)
