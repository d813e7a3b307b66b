"""What `model:auto` means: the stored level that is recommended for this machine as it is now.

Server process; reads the store and what is in memory, and changes nothing. Blocks: call it off the event loop.
"""

from __future__ import annotations

from dataclasses import replace

from service.api.contenders import Levels, levels_of, stored_candidates
from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.memory import bounded_context
from service.domain.recommend import Bounds, stored_choice
from service.machine import available_bytes, description


def recommended_now(services: Services, model: str) -> Variant:
    """The level to answer with: of the source that `GET /v1/recommend` takes for a bare name, and never one to be made.

    What is in memory already is taken where loading another would gain little. Raises ModelNotFound.
    """
    levels = levels_of(services, model)
    context = bounded_context(levels.source.facts, services.options.context_length)
    loaded = {variant.name for variant in levels.members if services.pool.is_loaded(variant.digest)}
    bounds = Bounds(_memory_now(services), context)
    candidates = [
        replace(candidate, loaded=candidate.name in loaded)
        for candidate in stored_candidates(services, _awake(services, levels), bounds, description())
    ]
    choice = stored_choice(candidates, bounds)
    # A source without a member is damaged, and whoever serves it says so.
    return next((one for one in levels.members if choice is not None and one.name == choice.name), levels.source)


def _memory_now(services: Services) -> int:
    """What could be loaded without waiting: the budget, or what is free, less what is at work."""
    pool = services.pool
    busy = sum(
        status.memory_bytes
        for status in pool.status()
        if status.active_requests or status.queued_requests or status.state == "starting"
    )
    return max(1, min(pool.memory_budget_bytes, available_bytes() + pool.memory_held_bytes) - busy)


def _awake(services: Services, levels: Levels) -> Levels:
    """Without levels whose worker rests after it died too often, unless all do."""
    resting = {status.digest for status in services.pool.status() if status.state == "quarantined"}
    awake = tuple(variant for variant in levels.members if variant.digest not in resting)
    return replace(levels, members=awake) if awake else levels
