"""Following a job: nothing stored is missed, nobody waits for a slow reader, and it ends with the job."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from service.domain.errors import JobNotFound
from service.domain.jobs import ImportSpec, JobStatus, Step
from service.jobs.events import Followers

STEPS = (Step("copy"),)


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


@pytest.fixture
def job(queue):
    queue.enqueue(ImportSpec("gloss", path="/a"), STEPS)
    return queue.claim()


async def test_a_follower_gets_the_past_then_the_present_then_the_end(queue, job):
    followers = Followers(queue)
    seen = []
    async with aclosing(followers.follow(job.id, 0)) as events:
        seen.append(await anext(events))
        seen.append(await anext(events))
        followers.fresh(replace(job, progress=0.3))
        seen.append(await anext(events))
        queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS)
        followers.stored(job.id)
        seen += [event async for event in events]
    assert [(event.id, event.kind) for event in seen] == [
        (1, "status"),
        (2, "status"),
        (None, "progress"),
        (3, "status"),
    ]
    assert seen[2].job.progress == 0.3
    assert seen[3].job.status is JobStatus.SUCCEEDED


async def test_a_slow_follower_gets_the_newest_progress_and_every_level(queue, job):
    followers = Followers(queue)
    async with aclosing(followers.follow(job.id, 1)) as events:
        assert (await anext(events)).id == 2
        for step in range(100):
            followers.fresh(replace(job, progress=step / 1000))
        queue.update_progress(job.id, 0.5, STEPS, None, result=())
        followers.stored(job.id)
        followers.fresh(replace(job, progress=0.6))
        first, second = await anext(events), await anext(events)
    assert (first.kind, first.job.progress) == ("level", 0.5)
    assert (second.kind, second.job.progress) == ("progress", 0.6)


async def test_following_resumes_after_the_last_id_seen(queue, job):
    queue.finish(job.id, JobStatus.FAILED, steps=STEPS)
    followers = Followers(queue)
    assert [event.id async for event in followers.follow(job.id, 1)] == [2, 3]
    assert [event.id async for event in followers.follow(job.id, 3)] == []


async def test_an_id_from_the_future_hides_nothing(queue, job):
    followers = Followers(queue)
    async with aclosing(followers.follow(job.id, 10**9)) as events:
        assert (await anext(events)).id == 2
        queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS)
        followers.stored(job.id)
        assert [event.id async for event in events] == [3]


async def test_many_followers_end_together_and_leave_nothing_behind(queue, job):
    followers = Followers(queue)

    async def last() -> JobStatus:
        status = None
        async for event in followers.follow(job.id, 0):
            status = event.job.status
        return status

    tasks = [asyncio.ensure_future(last()) for _ in range(10)]
    await until(lambda: len(followers._followers.get(job.id, ())) == 10)
    queue.finish(job.id, JobStatus.CANCELLED, steps=STEPS)
    followers.stored(job.id)
    assert set(await asyncio.wait_for(asyncio.gather(*tasks), 10)) == {JobStatus.CANCELLED}
    assert not followers._followers


async def test_a_server_that_stops_ends_its_followers(queue, job):
    followers = Followers(queue)
    async with aclosing(followers.follow(job.id, 2)) as events:
        waiting = asyncio.ensure_future(anext(events, None))
        await until(lambda: followers._followers)
        followers.close()
        assert await asyncio.wait_for(waiting, 5) is None


async def test_there_is_nothing_to_follow_of_an_unknown_job(queue):
    with pytest.raises(JobNotFound):
        await anext(Followers(queue).follow("job_0000000000000000", 0))
