"""`/v1/jobs` on a real queue; no child runs here, so the tests move the jobs themselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.api import jobs as api_jobs
from service.domain.jobs import JobError, JobStatus, QuantizeSpec, Step


@pytest.fixture
def job(api):
    source = api.catalog.resolve("gloss:F16")
    spec = QuantizeSpec(source.name, source.digest, ("Q4_K_M",))
    return api.queue.enqueue(spec, [Step("Q4_K_M")])[0]


def events_of(text: str) -> list[dict[str, str]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


async def test_jobs_are_listed_and_shown(client, api, job):
    listed = (await client.get("/v1/jobs")).json()
    assert [found["id"] for found in listed["data"]] == [job.id]
    assert (await client.get(f"/v1/jobs/{job.id}")).json() == listed["data"][0]
    assert listed["data"][0]["steps"] == [{"name": "Q4_K_M", "status": "queued", "progress": 0.0, "detail": None}]
    assert (await client.get("/v1/jobs?status=running")).json()["data"] == []
    assert len((await client.get("/v1/jobs?status=queued")).json()["data"]) == 1
    refused = await client.get("/v1/jobs?status=sleeping")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "status")


@pytest.mark.parametrize("path", ["/v1/jobs/job_none", "/v1/jobs/job_none/events"])
async def test_an_unknown_job_is_a_404(client, path):
    assert (await client.get(path)).json()["error"]["code"] == "job_not_found"
    assert (await client.delete("/v1/jobs/job_none")).status_code == 404


async def test_cancelling_ends_a_queued_job_and_then_conflicts(client, job):
    first = await client.delete(f"/v1/jobs/{job.id}")
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    second = await client.delete(f"/v1/jobs/{job.id}")
    assert (second.status_code, second.json()["error"]["code"]) == (409, "job_finished")


async def test_a_failed_job_says_why(client, api, job):
    api.queue.claim()
    error = JobError("quantization_failed", "It failed; look at the log.")
    api.queue.finish(job.id, JobStatus.FAILED, steps=job.steps, error=error)
    shown = (await client.get(f"/v1/jobs/{job.id}")).json()
    assert shown["error"] == {"code": "quantization_failed", "message": "It failed; look at the log."}


async def test_the_events_of_an_ended_job_come_and_end(client, api, job):
    api.queue.claim()
    api.queue.update_progress(job.id, 0.5, job.steps, 3.0)
    api.queue.finish(job.id, JobStatus.SUCCEEDED, steps=job.steps, result=["gloss:Q4_K_M"])
    answer = await client.get(f"/v1/jobs/{job.id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    assert [event["event"] for event in events] == ["status", "status", "progress", "status"]
    ids = [int(event["id"]) for event in events]
    assert ids == sorted(set(ids))
    assert '"status":"succeeded"' in events[-1]["data"]
    resumed = await client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": events[1]["id"]})
    assert events_of(resumed.text) == events[2:]
    over = await client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": events[-1]["id"]})
    assert (over.status_code, over.content) == (204, b"")


@pytest.mark.parametrize("last", ["", "x", "-1", "1e3", "9" * 30, "\u0661"])
async def test_a_crooked_last_event_id_begins_at_the_start(client, api, job, last):
    await client.delete(f"/v1/jobs/{job.id}")
    answer = await client.get(f"/v1/jobs/{job.id}/events", headers={"Last-Event-ID": last.encode()})
    assert len(events_of(answer.text)) == 2


async def test_a_quiet_stream_is_kept_open_by_comments(api, raw, job, monkeypatch):
    monkeypatch.setattr(api_jobs, "HEARTBEAT_SECONDS", 0.01)
    request = raw("GET", f"/v1/jobs/{job.id}/events")
    running = asyncio.create_task(request.run())
    async with asyncio.timeout(5):
        while ": alive\n\n" not in request.text:
            await asyncio.sleep(0.005)
    await api.services.jobs.cancel(job.id)
    await asyncio.wait_for(running, 5)
    assert [event["event"] for event in events_of(request.text)] == ["status", "status"]


async def test_progress_that_is_not_stored_comes_without_an_id(api, raw, job):
    """A client that resumes after it asks for the last stored event, as the standard has it: its id stays."""
    running_job = api.queue.claim()
    request = raw("GET", f"/v1/jobs/{job.id}/events")
    running = asyncio.create_task(request.run())
    async with asyncio.timeout(5):
        while request.text.count("event: status") < 2:
            await asyncio.sleep(0.005)
        api.services.jobs._followers.fresh(replace(running_job, progress=0.25))
        while "event: progress" not in request.text:
            await asyncio.sleep(0.005)
    api.queue.finish(job.id, JobStatus.SUCCEEDED, steps=job.steps)
    api.services.jobs._followers.stored(job.id)
    await asyncio.wait_for(running, 5)
    events = events_of(request.text)
    assert [(event["event"], event.get("id")) for event in events] == [
        ("status", "1"), ("status", "2"), ("progress", None), ("status", "3"),
    ]  # fmt: skip
    assert '"progress":0.25' in events[2]["data"]


async def test_hanging_up_ends_the_following(api, raw, job):
    request = raw("GET", f"/v1/jobs/{job.id}/events")
    running = asyncio.create_task(request.run())
    async with asyncio.timeout(5):
        while "event: status" not in request.text:
            await asyncio.sleep(0.005)
    request.hang_up.set()
    await asyncio.wait_for(running, 1)
    assert api.services.jobs._followers._followers == {}
