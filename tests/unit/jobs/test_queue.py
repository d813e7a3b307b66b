"""Promises of the job table: one job per piece of work, every ending once, nothing left running after a start."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import event

from service.domain.errors import JobFinished, JobNotFound, QueueFull
from service.domain.jobs import ENDED, ImportSpec, JobError, JobKind, JobStatus, PullSpec, QuantizeSpec, Step
from service.domain.recipes import Recipe
from service.jobs.lanes import Lane, kinds_in
from service.jobs.queue import JobQueue

DIGEST = "sha256:" + "a" * 64
STEPS = (Step("Q4_K_M"), Step("Q8_0"))
DONE_AND_HALF = (Step("Q4_K_M", JobStatus.SUCCEEDED, 1.0), Step("Q8_0", JobStatus.RUNNING, 0.5, "tensor 1 of 2"))


def quantize(name: str = "gloss:F16", *, levels: tuple[str, ...] = ("Q4_K_M", "Q8_0"), **more) -> QuantizeSpec:
    return QuantizeSpec(name, DIGEST, levels, **more)


def running(queue: JobQueue, spec=None):
    queue.enqueue(spec or quantize(), STEPS)
    job = queue.claim()
    assert job is not None
    return job


def test_a_new_job_waits_with_all_that_was_asked(queue):
    job, created = queue.enqueue(quantize(), STEPS)
    assert created
    assert re.fullmatch(r"job_[0-9a-f]{16}", job.id)
    assert (job.kind, job.status, job.spec, job.steps) == (JobKind.QUANTIZE, JobStatus.QUEUED, quantize(), STEPS)
    assert (job.progress, job.attempts, job.result, job.error) == (0.0, 0, (), None)
    assert queue.get(job.id) == job


def test_identical_requests_are_one_job(queue):
    first, _ = queue.enqueue(quantize(), STEPS)
    assert queue.enqueue(quantize(), STEPS) == (first, False)
    claimed = queue.claim()
    assert queue.enqueue(quantize(), STEPS) == (claimed, False)


@pytest.mark.parametrize(
    "same",
    [
        quantize(levels=("Q8_0", "Q4_K_M")),
        quantize(levels=("Q8_0", "Q4_K_M", "Q8_0")),
        quantize(threads=2),
        quantize("GLOSS:f16"),
    ],
)
def test_order_of_levels_threads_and_case_make_no_second_job(queue, same):
    first, _ = queue.enqueue(quantize(), STEPS)
    assert queue.enqueue(same, STEPS) == (first, False)


@pytest.mark.parametrize(
    "other",
    [
        quantize(levels=("Q4_K_M",)),
        quantize(recipe=Recipe(allow_requantize=True)),
        quantize(recipe=Recipe(pure=True)),
        quantize(flavour="mine"),
        quantize("other:F16"),
        ImportSpec("gloss", path="/a"),
    ],
)
def test_other_work_is_another_job(queue, other):
    queue.enqueue(quantize(), STEPS)
    assert queue.enqueue(other, STEPS)[1]


def test_levels_keep_the_order_they_were_asked_in(queue):
    job, _ = queue.enqueue(quantize(levels=("Q8_0", "Q4_K_M")), STEPS)
    assert queue.get(job.id).spec.levels == ("Q8_0", "Q4_K_M")


@pytest.mark.parametrize("ending", sorted(ENDED))
def test_the_same_work_can_be_asked_for_again_once_it_has_ended(queue, ending):
    job = running(queue)
    queue.finish(job.id, ending, steps=STEPS)
    again, created = queue.enqueue(quantize(), STEPS)
    assert created
    assert again.id != job.id


def test_a_full_queue_says_when_to_come_back(queue):
    for index in range(4):
        queue.enqueue(ImportSpec(f"m{index}", path="/a"), STEPS)
    with pytest.raises(QueueFull) as refused:
        queue.enqueue(ImportSpec("one-more", path="/a"), STEPS)
    assert refused.value.retry_after_seconds > 0
    assert not queue.enqueue(ImportSpec("m0", path="/a"), STEPS)[1], "a twin is found, not refused"
    queue.claim()
    assert queue.enqueue(ImportSpec("one-more", path="/a"), STEPS)[1], "running jobs take no place in the queue"


def test_jobs_are_claimed_in_the_order_they_came(queue):
    ids = [queue.enqueue(ImportSpec(f"m{index}", path="/a"), STEPS)[0].id for index in range(3)]
    claimed = [queue.claim() for _ in range(3)]
    assert [job.id for job in claimed] == ids
    assert all(job.status is JobStatus.RUNNING and job.started_at for job in claimed)
    assert queue.claim() is None
    assert [job.id for job in queue.list()] == ids[::-1]


def test_success_keeps_the_names_made(queue):
    job = running(queue)
    ended = queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS, result=("gloss:Q8_0",))
    assert (ended.status, ended.result) == (JobStatus.SUCCEEDED, ("gloss:Q8_0",))
    assert (ended.progress, ended.eta_seconds) == (1.0, None)
    assert ended.finished_at is not None


def test_failure_keeps_code_and_message(queue):
    job = running(queue)
    ended = queue.finish(job.id, JobStatus.FAILED, steps=STEPS, error=JobError("disk_full", "Make room."))
    assert ended.error == JobError("disk_full", "Make room.")


@pytest.mark.parametrize("first", sorted(ENDED))
@pytest.mark.parametrize("second", sorted(ENDED))
def test_a_job_ends_once(queue, first, second):
    job = running(queue)
    ended = queue.finish(job.id, first, steps=STEPS)
    assert queue.finish(job.id, second, steps=STEPS, result=("x",)) == ended


def test_progress_is_written_only_while_running(queue):
    job = running(queue)
    assert queue.update_progress(job.id, 0.5, DONE_AND_HALF, 3.0).progress == 0.5
    queue.finish(job.id, JobStatus.CANCELLED, steps=STEPS)
    assert queue.update_progress(job.id, 0.9, DONE_AND_HALF, 1.0) is None
    assert queue.get(job.id).progress == 0.5


def test_a_waiting_job_is_cancelled_at_once(queue):
    job, _ = queue.enqueue(quantize(), STEPS)
    assert queue.request_cancel(job.id).status is JobStatus.CANCELLED
    assert queue.claim() is None
    with pytest.raises(JobFinished):
        queue.request_cancel(job.id)


def test_a_running_job_remembers_that_it_is_to_be_cancelled(queue):
    job = running(queue)
    assert not queue.cancel_requested(job.id)
    assert queue.request_cancel(job.id).status is JobStatus.RUNNING
    assert queue.cancel_requested(job.id)


def test_unknown_ids_are_not_found(queue):
    for ask in (queue.get, queue.request_cancel, queue.events_after, queue.cancel_requested):
        with pytest.raises(JobNotFound):
            ask("job_0000000000000000")


def test_a_job_that_was_running_when_the_server_died_waits_again_and_keeps_its_finished_steps(queue):
    job = running(queue)
    queue.update_progress(job.id, 0.7, DONE_AND_HALF, None)
    assert queue.recover() == 1
    again = queue.get(job.id)
    assert (again.status, again.attempts, again.started_at) == (JobStatus.QUEUED, 1, None)
    assert again.steps == (DONE_AND_HALF[0], Step("Q8_0"))


def test_a_job_that_takes_the_server_down_every_time_is_given_up(queue):
    job = running(queue)
    for attempt in (1, 2, 3):
        queue.recover()
        assert queue.get(job.id).attempts == attempt
        assert queue.claim().id == job.id
    queue.recover()
    ended = queue.get(job.id)
    assert (ended.status, ended.error.code) == (JobStatus.FAILED, "job_interrupted")
    assert queue.claim() is None


def test_recovery_leaves_waiting_and_ended_jobs_alone(queue):
    done = running(queue)
    queue.finish(done.id, JobStatus.SUCCEEDED, steps=STEPS)
    waiting, _ = queue.enqueue(quantize(), STEPS)
    before = [queue.get(done.id), queue.get(waiting.id)]
    assert queue.recover() == 0
    assert [queue.get(done.id), queue.get(waiting.id)] == before


def test_recovery_does_not_bring_back_what_was_to_be_cancelled(queue):
    job = running(queue)
    queue.request_cancel(job.id)
    queue.recover()
    assert queue.get(job.id).status is JobStatus.CANCELLED


def test_a_server_that_stops_in_good_order_costs_the_job_no_attempt_and_no_place(queue):
    job = running(queue)
    queue.enqueue(ImportSpec("later", path="/a"), STEPS)
    assert queue.release(job.id, DONE_AND_HALF).attempts == 0
    assert queue.claim().id == job.id


def test_releasing_a_job_that_is_to_be_cancelled_cancels_it(queue):
    job = running(queue)
    queue.request_cancel(job.id)
    assert queue.release(job.id, STEPS).status is JobStatus.CANCELLED


def test_every_change_of_status_and_every_level_is_an_event(queue):
    job = running(queue)
    queue.update_progress(job.id, 0.5, DONE_AND_HALF, 1.0, result=("gloss:Q8_0",))
    queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS)
    events = queue.events_after(job.id)
    assert [event.id for event in events] == [1, 2, 3, 4]
    assert [event.kind for event in events] == ["status", "status", "level", "status"]
    assert [event.job.status for event in events] == ["queued", "running", "running", "succeeded"]
    assert events[2].job.steps == DONE_AND_HALF
    assert events[-1].job == queue.get(job.id)
    assert queue.events_after(job.id, 2) == events[2:]


def test_a_progress_event_replaces_the_one_before_and_ids_still_count_up(queue):
    job = running(queue)
    for tenth in range(1, 10):
        queue.update_progress(job.id, tenth / 10, DONE_AND_HALF, None)
    events = queue.events_after(job.id)
    assert [(event.id, event.kind) for event in events] == [(1, "status"), (2, "status"), (11, "progress")]
    assert events[-1].job.progress == 0.9


def test_blobs_of_active_jobs_are_named_for_the_sweep(queue):
    upload = "sha256:" + "b" * 64
    queue.enqueue(ImportSpec("up", digest=upload), STEPS)
    job = running(queue, quantize())
    queue.enqueue(quantize(), STEPS)
    assert queue.active_digests() == {upload, DIGEST}
    queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS)


def test_jobs_are_counted_by_status_in_one_query(queue, engine):
    assert queue.counts() == dict.fromkeys(JobStatus, 0)
    for index, status in enumerate((JobStatus.SUCCEEDED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)):
        queue.finish(running(queue, ImportSpec(f"m{index}", path="/a")).id, status, steps=STEPS)
    running(queue, ImportSpec("running", path="/a"))
    queue.enqueue(quantize(), STEPS)
    queue.enqueue(quantize(levels=("Q2_K",)), STEPS)
    statements = []

    def note(connection, cursor, statement, *_):
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        counts = queue.counts()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    assert {status.value: count for status, count in counts.items()} == {
        "queued": 2, "running": 1, "succeeded": 2, "failed": 1, "cancelled": 1,
    }  # fmt: skip
    assert len([statement for statement in statements if statement.startswith("SELECT")]) == 1


def test_pruning_forgets_the_oldest_ended_jobs_and_never_an_active_one(queue):
    ended = []
    for index in range(4):
        job = running(queue, ImportSpec(f"m{index}", path="/a"))
        queue.finish(job.id, JobStatus.SUCCEEDED, steps=STEPS)
        ended.append(job.id)
    active = running(queue)
    assert queue.prune(keep=2) == 2
    assert [job.id for job in queue.list()] == [active.id, ended[3], ended[2]]
    with pytest.raises(JobNotFound):
        queue.events_after(ended[0])


# --- pulls ---------------------------------------------------------------------------------------------------------


def test_a_pull_waits_for_another_from_the_same_address_and_for_no_other(queue):
    for spec in (PullSpec("a", "hf.co/o/r"), PullSpec("b", "hf.co/o/r"), PullSpec("c", "hf.co/o/s")):
        queue.enqueue(spec, STEPS)
    first, third = queue.claim(), queue.claim()
    assert (first.spec.name, third.spec.name) == ("a", "c")
    assert queue.claim() is None
    queue.finish(first.id, JobStatus.SUCCEEDED, steps=STEPS)
    assert queue.claim().spec.name == "b"


def test_pulls_and_other_jobs_are_claimed_apart(queue):
    queue.enqueue(quantize(), STEPS)
    queue.enqueue(PullSpec("a", "hf.co/o/r"), STEPS)
    assert queue.claim(kinds_in(Lane.PULL)).kind is JobKind.PULL
    assert queue.claim(kinds_in(Lane.PULL)) is None
    assert queue.claim(kinds_in(Lane.WORK)).kind is JobKind.QUANTIZE


def test_equal_pulls_are_one_job_and_others_are_not(queue):
    first, _ = queue.enqueue(PullSpec("hf.co/o/r", "hf.co/o/r"), STEPS)
    assert queue.enqueue(PullSpec("HF.co/O/r", "hf.co/o/r"), STEPS) == (first, False)
    assert queue.enqueue(PullSpec("hf.co/o/r", "hf.co/o/r:Q8_0"), STEPS)[1]
