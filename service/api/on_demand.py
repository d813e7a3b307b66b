"""A level that a request names and that is not there is made of a stored source, where the operator wants that.

The request waits for it, or gets 202 with the job when it says `Prefer: respond-async` (RFC 7240); `Prefer: wait=10`
bounds the wait in seconds. Requests for one level share its job.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from starlette.types import Receive

from service.api.streams import unless_gone
from service.domain.catalog import Variant
from service.domain.datasets import CALIBRATION, DatasetRef
from service.domain.errors import BeingMade, JobFailed, ModelNotFound, by_code
from service.domain.jobs import ENDED, CalibrateOptions, Job, QuantizeSpec
from service.domain.names import ModelRef, parse_ref

if TYPE_CHECKING:
    from service.api.services import Services

_RETRY_AFTER_SECONDS = 5
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,6})\"?", re.IGNORECASE)


class LevelInTheMaking(Exception):
    """The request is answered with the job that makes its level: it asked not to wait."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.id)
        self.job = job


@dataclass(frozen=True, slots=True)
class Preference:
    """What a request says of waiting. `wait_seconds` None: as long as the server lets it."""

    respond_async: bool = False
    wait_seconds: int | None = None


PREFERENCE: ContextVar[Preference | None] = ContextVar("preference", default=None)
"""That of the request at hand."""

RECEIVE: ContextVar[Receive | None] = ContextVar("receive", default=None)
"""What tells that its client has hung up."""


def read_preference(headers: Sequence[str]) -> Preference:
    """What the `Prefer` headers of a request say; what else they may hold is ignored, as RFC 7240 asks."""
    wishes = [part.strip() for header in headers for part in header.split(",")]
    waits = [found for wish in wishes if (found := _WAIT.fullmatch(wish))]
    return Preference(
        respond_async=any(wish.lower() == "respond-async" for wish in wishes),
        wait_seconds=int(waits[0][1]) if waits else None,
    )


async def made_on_demand(services: Services, name: str) -> Variant:
    """The variant of that name, made now. Raises ModelNotFound where it cannot be, and what the job failed with.

    Raises BeingMade when it takes longer than the request waits, LevelInTheMaking when it does not wait, ClientGone.
    """
    ref = parse_ref(name)
    spec = await asyncio.to_thread(_spec, services, ref)
    if spec is None:
        return await services.find(name)  # raises ModelNotFound, unless someone has made it meanwhile
    job = await services.jobs.submit_quantize(spec)
    preference = PREFERENCE.get() or Preference()
    if preference.respond_async and job.status not in ENDED:
        raise LevelInTheMaking(job)
    longest = services.options.on_demand_wait_seconds
    wanted = longest if preference.wait_seconds is None else min(longest, preference.wait_seconds)
    waiting = services.jobs.wait(job.id, wanted)
    receive = RECEIVE.get()
    job = await (waiting if receive is None else unless_gone(receive, waiting))  # the job goes on without the client
    if job.status not in ENDED:
        raise BeingMade(
            f"{ref.display} is being made by {job.id}; ask again when that job has ended.",
            param="model",
            retry_after_seconds=max(_RETRY_AFTER_SECONDS, round(job.eta_seconds or 0)),
        )
    if job.error is not None:
        raise by_code(job.error.code)(job.error.message, param="model")
    if not job.result:
        raise JobFailed(f"The job that made {ref.display} was cancelled; ask again.")
    return await services.find(name)


def _spec(services: Services, ref: ModelRef) -> QuantizeSpec | None:
    """The job that makes the level named; None when none is named, or none can be made without losing twice.

    Raises ModelNotFound for one with more bits than its source has: they would hold nothing, and it would be the
    source of what is made later.
    """
    if ref.label is None:
        return None
    try:
        source = services.catalog.resolve_source(replace(ref, tag=ref.flavour or None, label=None))
    except ModelNotFound:
        return None
    plans = {plan.quantization: plan for plan in services.catalog.plans(source.digest)}
    plan = plans.get(ref.label)
    if source.lossy or source.corrupt or plan is None or plan.error is not None:
        return None
    if plan.bits_per_weight > source.facts.bits_per_weight:
        raise ModelNotFound(
            f"There is no {ref.display}, and {source.name}, which it would be made of, has fewer bits per weight: it "
            "would be larger and no better. POST /v1/quantize makes it all the same.",
            param="model",
        )
    calibrate = None
    if plan.needs_imatrix:
        text = services.laboratory.dataset(CALIBRATION)
        calibrate = CalibrateOptions(DatasetRef(text.name, text.digest))
    return QuantizeSpec(source.name, source.digest, (ref.label,), calibrate=calibrate)
