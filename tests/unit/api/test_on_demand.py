"""Levels that a request names and that are made for it: which, and what becomes of a client that leaves."""

from __future__ import annotations

import asyncio

import pytest

from service.domain.catalog import LevelPlan
from service.domain.errors import ModelNotFound
from service.domain.jobs import JobStatus, QuantizeSpec

BODY = b'{"model": "gloss:Q4_K_M", "prompt": "sea"}'


@pytest.fixture
def eager(make_api):
    """An application that makes levels on demand; its jobs wait, for nothing runs them."""
    api = make_api(on_demand=True)
    api.add("gloss", "F16")
    return api


async def test_a_client_that_waits_for_a_level_and_hangs_up_is_let_go_and_the_job_stays(eager, raw, monkeypatch):
    waits, wait = asyncio.Event(), eager.services.jobs.wait

    async def waiting(job_id, timeout_seconds):
        waits.set()
        return await wait(job_id, timeout_seconds)

    monkeypatch.setattr(eager.services.jobs, "wait", waiting)
    request = raw("POST", "/v1/generate", BODY, app=eager.app)
    running = asyncio.create_task(request.run())
    async with asyncio.timeout(10):
        await waits.wait()
        request.hang_up.set()
        await running
    assert request.status is None
    assert [job.status for job in eager.queue.list()] == [JobStatus.QUEUED]


async def test_a_level_with_more_bits_than_its_source_is_not_made_on_demand(eager, monkeypatch):
    plans = (LevelPlan("F32", 4000, 32.0, False, (), ()), LevelPlan("BF16", 2000, 16.0, False, (), ()))
    monkeypatch.setattr(eager.catalog, "plans", lambda digest: plans)
    with pytest.raises(ModelNotFound, match=r"fewer bits.*POST /v1/quantize"):
        await eager.services.servable("gloss:F32")
    assert not eager.queue.list()


async def test_a_job_is_told_to_be_new_once(eager):
    source = eager.catalog.resolve("gloss:F16")
    spec = QuantizeSpec(source.name, source.digest, ("Q4_K_M",))
    first, second = await asyncio.gather(*(eager.services.jobs.begin(spec) for _ in range(2)))
    assert first[0].id == second[0].id
    assert {first[1], second[1]} == {True, False}
    assert (await eager.services.jobs.submit_quantize(spec)).id == first[0].id
