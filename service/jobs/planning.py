"""Plans of recipes, with every tensor: a short-lived child makes them, and they are remembered.

Server process, one loop; a few at a time, and none outlasts its deadline. What is kept of plain levels since the import
has sizes and counts, no tensors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from service.domain.catalog import LevelPlan, Variant
from service.domain.errors import BlobCorrupt, DeadlineExceeded, JobChildDied, by_code
from service.domain.jobs import JobKind
from service.domain.recipes import Recipe
from service.frames import BadFrame
from service.jobs.child import Child, death
from service.jobs.messages import Failed, LaboratoryTask, Planned, PlanStep
from service.store.stores import Stores

_AT_A_TIME = 2
_REMEMBERED = 1000

_log = structlog.get_logger("jobs")

_Key = tuple[str, Recipe, bool]


class Planner:
    """Plans for the levels of stored files."""

    def __init__(self, argv: tuple[str, ...], stores: Stores, seconds: float) -> None:
        """`argv` starts a job's child; a plan may take `seconds`."""
        self._argv = argv
        self._stores = stores
        self._seconds = seconds
        self._turns = asyncio.Semaphore(_AT_A_TIME)
        self._known: dict[_Key, LevelPlan] = {}

    def known(self, digest: str, recipe: Recipe, has_importance: bool) -> LevelPlan | None:
        """The plan made for that before, since the server started. Never blocks."""
        return self._known.get(_key(digest, recipe, has_importance))

    async def plan(
        self, source: Variant, recipes: Sequence[Recipe], *, has_importance: bool = False
    ) -> tuple[LevelPlan, ...]:
        """As `JobRunner.plan`."""
        if source.corrupt:
            raise BlobCorrupt(f"The bytes of {source.name} on disk no longer match their digest; import it again.")
        keys = [
            _key(source.digest, recipe, has_importance or recipe.importance_matrix is not None) for recipe in recipes
        ]
        found = {key: self._known[key] for key in keys if key in self._known}
        for with_importance in (False, True):
            missing = tuple(dict.fromkeys(key for key in keys if key not in found and key[2] is with_importance))
            if missing:
                made = await self._ask(source, tuple(key[1] for key in missing), with_importance)
                found |= dict(zip(missing, made, strict=True))
                self._remember(dict(zip(missing, made, strict=True)))
        return tuple(found[key] for key in keys)

    def _remember(self, plans: dict[_Key, LevelPlan]) -> None:
        if len(self._known) + len(plans) > _REMEMBERED:
            self._known = {}
        self._known |= plans

    async def _ask(self, source: Variant, recipes: tuple[Recipe, ...], has_importance: bool) -> tuple[LevelPlan, ...]:
        step = PlanStep(recipes=recipes, has_importance=has_importance)
        path = str(self._stores.blobs.path(source.digest))
        task = LaboratoryTask(source=path, steps=(step,), threads=1, niceness=0)
        try:
            async with asyncio.timeout(self._seconds), self._turns:
                return await self._run(task)
        except TimeoutError:
            raise DeadlineExceeded(
                f"The plan was not ready within {self._seconds:.0f} seconds; ask for fewer levels, or again when the "
                "machine is less busy."
            ) from None

    async def _run(self, task: LaboratoryTask) -> tuple[LevelPlan, ...]:
        child = await Child.start(self._argv, task)
        plans: tuple[LevelPlan, ...] | None = None
        try:
            async with aclosing(child.messages(self._seconds)) as messages:
                async for message in messages:
                    if isinstance(message, Planned):
                        plans = message.plans
                    elif isinstance(message, Failed):
                        raise by_code(message.code)(message.message, param=message.param)
        except BadFrame as problem:
            raise JobChildDied("The planning process wrote something unreadable and was ended; try again.") from problem
        finally:
            await child.terminate()
            status = await child.ended()
        if plans is None:
            _log.warning("a planning child died", status=status, stderr=child.stderr_tail[-2000:])
            raise death(JobKind.QUANTIZE, status, child.assertion)
        return plans


def _key(digest: str, recipe: Recipe, has_importance: bool) -> _Key:
    # Neither which matrix it is nor the permission changes what the result would be.
    return digest, replace(recipe, importance_matrix=None, allow_requantize=False), has_importance
