"""Quantize jobs with the real store and the real llama.cpp."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

import pytest

from service.domain.errors import (
    Conflict,
    DiskFull,
    ImportanceMatrixRequired,
    LossySource,
    ModelNotFound,
    QuantizationNotApplicable,
    QueueFull,
    ShuttingDown,
    UnknownQuantization,
)
from service.domain.jobs import ENDED, ImportSpec, JobStatus
from service.domain.names import parse_ref
from service.domain.recipes import Recipe

SLOW = ("Q8_0", "IQ3_S", "IQ3_M", "Q3_K_L")  # the second and third take more than a second each


async def test_levels_become_variants_beside_their_source(home, source):
    job = await home.ended(await home.runner.submit_quantize(home.levels(source, "q8_0", "Q4_K", "Q2_K")))
    assert (job.status, job.progress) == (JobStatus.SUCCEEDED, 1.0)
    assert job.result == ("gloss:Q8_0", "gloss:Q4_K_M", "gloss:Q2_K")
    assert [step.status for step in job.steps] == ["succeeded"] * 3
    plans = {plan.quantization: plan for plan in home.catalog.plans(source.digest)}
    for name in job.result:
        variant = home.catalog.resolve(name)
        plan = plans[variant.quantization]
        assert home.blobs.verify(variant.digest)
        assert (variant.size_bytes, variant.facts.types) == (plan.size_bytes, plan.types)
        lineage = variant.lineage
        assert (lineage.origin, lineage.source_digest, lineage.source_name) == ("quantized", source.digest, "gloss:F16")
        assert lineage.recipe == Recipe(variant.quantization)
        assert "llama.cpp" in lineage.llama_build
        assert not lineage.lossy_source
        (figure,) = home.catalog.measurements(variant.id)
        assert (figure.name, figure.unit) == ("quantize_seconds", "seconds")
        assert figure.value > 0
    assert home.incoming() == []


async def test_progress_rises_by_tensors_and_ends_with_the_job(home, source):
    job = await home.runner.submit_quantize(home.levels(source, *SLOW))
    events = [event async for event in home.runner.subscribe(job.id)]
    shares = [event.job.progress for event in events]
    ids = [event.id for event in events if event.id is not None]
    assert shares == sorted(shares)
    assert ids == sorted(set(ids))
    assert [event.kind for event in events].count("level") == len(SLOW)
    details = {step.detail for event in events for step in event.job.steps if step.status is JobStatus.RUNNING}
    assert any(detail and detail.startswith("tensor ") and detail.endswith(" of 56") for detail in details)
    assert any(event.job.eta_seconds for event in events)
    assert events[-1].job.status is JobStatus.SUCCEEDED
    stored = home.queue.events_after(job.id)
    middle = stored[len(stored) // 2].id
    assert [event async for event in home.runner.subscribe(job.id, middle)] == [e for e in stored if e.id > middle]


async def test_two_identical_requests_are_one_job(home, source):
    first, second = await asyncio.gather(
        home.runner.submit_quantize(home.levels(source, "Q8_0", "Q4_K_M")),
        home.runner.submit_quantize(home.levels(source, "q4_k", "q8_0", "Q4_K_M")),
    )
    assert first.id == second.id
    await home.ended(first)
    assert len(home.queue.list()) == 1 + 1, "one import, one quantize job"


async def test_levels_that_are_there_are_not_made_again(home, source):
    await home.ended(await home.runner.submit_quantize(home.levels(source, "Q8_0")))
    before = home.catalog.resolve("gloss:Q8_0")
    job = await home.ended(await home.runner.submit_quantize(home.levels(source, "F16", "Q8_0", "Q4_0")))
    assert job.result == ("gloss:F16", "gloss:Q8_0", "gloss:Q4_0")
    assert [step.detail for step in job.steps] == ["already there", "already there", None]
    assert home.catalog.resolve("gloss:Q8_0") == before
    again = await home.ended(await home.runner.submit_quantize(home.levels(source, "Q8_0")))
    assert (again.status, again.result) == (JobStatus.SUCCEEDED, ("gloss:Q8_0",))


async def test_what_cannot_be_made_is_refused_before_it_is_queued(home, source):
    refusals = {
        "Q9": UnknownQuantization,
        "IQ2_XS": ImportanceMatrixRequired,
        "MXFP4": QuantizationNotApplicable,
    }
    for level, error in refusals.items():
        with pytest.raises(error):
            await home.runner.submit_quantize(home.levels(source, "Q8_0", level))
    home.blobs.reserve_bytes = 2**60
    with pytest.raises(DiskFull, match="bytes are needed"):
        await home.runner.submit_quantize(home.levels(source, "Q8_0"))
    assert [job.kind for job in home.queue.list()] == ["import"]


async def test_a_name_that_changed_its_meaning_is_refused(home, source):
    spec = home.levels(source, "Q8_0")
    home.catalog.delete(parse_ref("gloss"))
    with pytest.raises(ModelNotFound):
        await home.runner.submit_quantize(spec)


async def test_a_source_that_is_another_file_by_now_is_refused(home, source):
    with pytest.raises(Conflict):
        await home.runner.submit_quantize(replace(home.levels(source, "Q8_0"), source_digest="sha256:" + "0" * 64))


async def test_a_lossy_source_needs_permission_and_marks_what_is_made_of_it_for_ever(home, source):
    await home.ended(await home.runner.submit_quantize(home.levels(source, "Q4_0")))
    q4 = home.catalog.resolve("gloss:Q4_0")
    copied = home.catalog.copy(q4, parse_ref("lossy"))
    with pytest.raises(LossySource):
        await home.runner.submit_quantize(home.levels(copied, "Q8_0"))
    job = await home.ended(await home.runner.submit_quantize(home.levels(copied, "F16", allow=True)))
    assert job.result == ("lossy:F16",)
    f16 = home.catalog.resolve("lossy:F16")
    assert (f16.lineage.lossy_source, f16.lossy, f16.facts.quantized_tensors) == (True, True, False)
    with pytest.raises(LossySource):
        await home.runner.submit_quantize(home.levels(f16, "Q8_0"))
    job = await home.ended(await home.runner.submit_quantize(home.levels(f16, "Q8_0", allow=True)))
    made = home.catalog.resolve("lossy:Q8_0")
    assert made.lineage.lossy_source
    assert made.lineage.recipe == Recipe("Q8_0", allow_requantize=True)


async def test_cancel_in_the_middle_keeps_finished_levels_and_leaves_no_temp(home, source, job_children):
    job = await home.runner.submit_quantize(home.levels(source, *SLOW))
    await home.under_way(job, 1)
    cancelled = await home.runner.cancel(job.id)
    assert (cancelled.status, cancelled.result) == (JobStatus.CANCELLED, ("gloss:Q8_0",))
    assert [step.status for step in cancelled.steps] == ["succeeded", "cancelled", "cancelled", "cancelled"]
    assert home.incoming() == []
    assert home.names() == ["gloss:F16", "gloss:Q8_0"]
    assert not job_children()


async def test_a_waiting_job_is_cancelled_at_once(home, source):
    running = await home.runner.submit_quantize(home.levels(source, "IQ3_S"))
    waiting = await home.runner.submit_quantize(home.levels(source, "Q8_0"))
    await home.under_way(running, 0)
    assert (await home.runner.cancel(waiting.id)).status is JobStatus.CANCELLED
    await home.ended(running)
    assert home.names() == ["gloss:F16", "gloss:IQ3_S"]


async def test_a_cancel_in_the_first_moment_is_not_lost(home, source):
    for _ in range(5):
        job = await home.runner.submit_quantize(home.levels(source, "IQ3_S"))
        assert (await home.runner.cancel(job.id)).status is JobStatus.CANCELLED
        assert (await home.ended(job)).status is JobStatus.CANCELLED
    assert (home.names(), home.incoming()) == (["gloss:F16"], [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_killed_child_fails_its_job_and_nothing_else(home, source, job_children, number):
    job = await home.runner.submit_quantize(home.levels(source, *SLOW))
    waiting = await home.runner.submit_quantize(home.levels(source, "Q4_0"))
    await home.under_way(job, 1)
    (child,) = job_children()
    child.send_signal(number)
    ended = await home.ended(job)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "job_child_died")
    assert number.name in ended.error.message
    assert [step.status for step in ended.steps] == ["succeeded", "failed", "cancelled", "cancelled"]
    assert (await home.ended(waiting)).status is JobStatus.SUCCEEDED
    assert home.incoming() == []
    assert home.names() == ["gloss:F16", "gloss:Q4_0", "gloss:Q8_0"]


async def test_the_same_request_after_a_failure_makes_only_what_is_missing(home, source, job_children):
    job = await home.runner.submit_quantize(home.levels(source, "Q8_0", "IQ3_S"))
    await home.under_way(job, 1)
    job_children()[0].kill()
    await home.ended(job)
    digest = home.catalog.resolve("gloss:Q8_0").digest
    again = await home.runner.submit_quantize(home.levels(source, "Q8_0", "IQ3_S"))
    assert again.id != job.id
    assert again.steps[0].detail == "already there"
    ended = await home.ended(again)
    assert ended.result == ("gloss:Q8_0", "gloss:IQ3_S")
    assert home.catalog.resolve("gloss:Q8_0").digest == digest


async def test_a_full_disk_in_the_middle_fails_as_such_and_a_retry_works(open_home, script):
    limits = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (5 * 10**6, 5 * 10**6)); GO"
    home = open_home(argv=script(limits))
    source = home.catalog.resolve("gloss:F16")
    await home.runner.start()
    job = await home.ended(await home.runner.submit_quantize(home.levels(source, "Q4_0", "Q8_0")))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "disk_full")
    assert "Q8_0" in job.error.message
    assert str(home.folder) not in job.error.message
    assert (home.incoming(), home.names()) == ([], ["gloss:F16", "gloss:Q4_0"])
    await home.runner.stop()
    home.close()
    better = open_home()
    await better.runner.start()
    again = await better.ended(await better.runner.submit_quantize(better.levels(source, "Q4_0", "Q8_0")))
    assert again.result == ("gloss:Q4_0", "gloss:Q8_0")
    await better.runner.stop()


async def test_a_stop_puts_the_running_job_back_and_the_next_start_finishes_it(open_home, job_children):
    home = open_home()
    source = home.catalog.resolve("gloss:F16")
    await home.runner.start()
    job = await home.runner.submit_quantize(home.levels(source, "Q8_0", "IQ3_S"))
    await home.under_way(job, 1)
    await home.runner.stop()
    assert not job_children()
    waiting = home.queue.get(job.id)
    assert (waiting.status, waiting.attempts) == (JobStatus.QUEUED, 0)
    assert [step.status for step in waiting.steps] == ["succeeded", "queued"]
    assert home.incoming() == []
    with pytest.raises(ShuttingDown):
        await home.runner.submit_quantize(home.levels(source, "Q4_0"))
    home.close()
    following = open_home()
    await following.runner.start()
    ended = await following.ended(job)
    assert ended.result == ("gloss:Q8_0", "gloss:IQ3_S")
    await following.runner.stop()


async def test_two_jobs_run_at_once_when_asked_to(open_home, job_children):
    home = open_home(concurrency=2)
    source = home.catalog.resolve("gloss:F16")
    await home.runner.start()
    one = await home.runner.submit_quantize(home.levels(source, "IQ3_S"))
    two = await home.runner.submit_quantize(home.levels(source, "IQ3_M"))
    await asyncio.gather(home.under_way(one, 0), home.under_way(two, 0))
    assert len(job_children()) == 2
    await asyncio.gather(home.ended(one), home.ended(two))
    assert home.names() == ["gloss:F16", "gloss:IQ3_M", "gloss:IQ3_S"]
    await home.runner.stop()


async def test_the_queue_is_bounded(open_home, gloss):
    home = open_home()
    for index in range(10):
        await home.runner.submit_import(ImportSpec(f"m{index}", path=str(gloss)))
    with pytest.raises(QueueFull) as refused:
        await home.runner.submit_import(ImportSpec("m10", path=str(gloss)))
    assert refused.value.retry_after_seconds > 0


async def test_many_followers_of_one_job_all_see_its_end(home, source):
    job = await home.runner.submit_quantize(home.levels(source, "IQ3_S"))

    async def follow() -> JobStatus:
        status = None
        async for event in home.runner.subscribe(job.id):
            await asyncio.sleep(0.05)
            status = event.job.status
        return status

    seen = await asyncio.gather(*(follow() for _ in range(20)))
    assert set(seen) == {JobStatus.SUCCEEDED} <= ENDED
