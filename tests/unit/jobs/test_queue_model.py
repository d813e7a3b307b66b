"""The job table against a model in memory, under every order of calls hypothesis can think of."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import Engine, delete

from service.domain.errors import JobFinished, QueueFull
from service.domain.jobs import ENDED, TRANSITIONS, ImportSpec, JobStatus, Step
from service.jobs.queue import MAX_INTERRUPTIONS, JobQueue
from service.store.database import write
from service.store.tables import job_events, jobs

MAX_QUEUED = 3
STEPS = (Step("copy"),)


@pytest.fixture(scope="module", autouse=True)
def _database(engine: Engine) -> None:
    QueueModel.engine = engine


class QueueModel(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        with write(self.engine) as connection:
            connection.execute(delete(job_events))
            connection.execute(delete(jobs))
        self.queue = JobQueue(self.engine, MAX_QUEUED)
        self.order: list[str] = []
        self.status: dict[str, JobStatus] = {}
        self.attempts: dict[str, int] = {}
        self.name: dict[str, str] = {}
        self.unwanted: set[str] = set()

    def those(self, *statuses: JobStatus) -> list[str]:
        return [job_id for job_id in self.order if self.status[job_id] in statuses]

    @rule(name=st.sampled_from("abcde"))
    def enqueue(self, name: str) -> None:
        twin = [j for j in self.those(JobStatus.QUEUED, JobStatus.RUNNING) if self.name[j] == name]
        full = len(self.those(JobStatus.QUEUED)) >= MAX_QUEUED
        try:
            job, created = self.queue.enqueue(ImportSpec(name, path="/a"), STEPS)
        except QueueFull:
            assert full
            assert not twin
            return
        assert created == (not twin)
        if twin:
            assert job.id == twin[0]
            return
        assert not full
        self.order.append(job.id)
        self.status[job.id], self.attempts[job.id], self.name[job.id] = JobStatus.QUEUED, 0, name

    @rule()
    def claim(self) -> None:
        waiting = self.those(JobStatus.QUEUED)
        job = self.queue.claim()
        assert (job.id if job else None) == (waiting[0] if waiting else None)
        if job:
            self.status[job.id] = JobStatus.RUNNING

    @rule(data=st.data(), ending=st.sampled_from(sorted(ENDED)))
    def finish(self, data: st.DataObject, ending: JobStatus) -> None:
        if self.order:
            job_id = data.draw(st.sampled_from(self.order))
            job = self.queue.finish(job_id, ending, steps=STEPS)
            if self.status[job_id] is JobStatus.RUNNING:
                self.status[job_id] = ending
            assert job.status is self.status[job_id]

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.order:
            job_id = data.draw(st.sampled_from(self.order))
            try:
                self.queue.request_cancel(job_id)
            except JobFinished:
                assert self.status[job_id] in ENDED
                return
            self.unwanted.add(job_id)
            if self.status[job_id] is JobStatus.QUEUED:
                self.status[job_id] = JobStatus.CANCELLED

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.order:
            job_id = data.draw(st.sampled_from(self.order))
            self.queue.release(job_id, STEPS)
            if self.status[job_id] is JobStatus.RUNNING:
                unwanted = job_id in self.unwanted
                self.status[job_id] = JobStatus.CANCELLED if unwanted else JobStatus.QUEUED

    @rule()
    def the_server_dies_and_starts(self) -> None:
        self.queue.recover()
        for job_id in self.those(JobStatus.RUNNING):
            if job_id in self.unwanted:
                self.status[job_id] = JobStatus.CANCELLED
            elif self.attempts[job_id] >= MAX_INTERRUPTIONS:
                self.status[job_id] = JobStatus.FAILED
            else:
                self.status[job_id] = JobStatus.QUEUED
                self.attempts[job_id] += 1
        assert not self.queue.list(JobStatus.RUNNING)

    @invariant()
    def agrees_with_the_model(self) -> None:
        found = self.queue.list()[::-1]
        assert [job.id for job in found] == self.order
        assert {job.id: job.status for job in found} == self.status
        assert {job.id: job.attempts for job in found} == self.attempts
        for job in found:
            assert (job.status in ENDED) == (job.finished_at is not None)

    def teardown(self) -> None:
        for job_id in self.order:
            events = self.queue.events_after(job_id)
            assert [event.id for event in events] == list(range(1, len(events) + 1))
            path = [event.job.status for event in events]
            assert path[0] is JobStatus.QUEUED
            assert all(after in TRANSITIONS[before] for before, after in pairwise(path))
            assert sum(status in ENDED for status in path) <= 1


QueueModel.TestCase.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestQueueModel = QueueModel.TestCase
