"""Promises of what was fetched: it goes when nobody has a use for it any more, and not before."""

from __future__ import annotations

import asyncio

import pytest

from service.domain.jobs import AdapterSpec, ImportSpec, JobError, JobStatus, PullSpec, Step, StoredFile
from service.jobs.transfers import Transfers, is_gone_on_with
from service.store.partials import Partials, folder_name, hold

HERE, ELSEWHERE = folder_name("pull", "here"), folder_name("pull", "elsewhere")


@pytest.fixture
def partials(tmp_path):
    partials = Partials(tmp_path / "partial", 86400.0)
    partials.start()
    for name in (HERE, ELSEWHERE):
        (partials.root / name).mkdir()
        (partials.root / name / "file").write_bytes(b"bytes")
    return partials


@pytest.fixture
def transfers(queue, partials):
    return Transfers(queue, partials)


def left(partials):
    return {path.name for path in partials.root.iterdir()}


def begun(transfers, job_id, folder=None, source="hf.co/o/r"):
    transfers.begin(job_id, PullSpec(job_id, source))
    if folder is not None:
        transfers.found(job_id, folder)


def end(transfers, job_id, *, keep=False):
    asyncio.run(transfers.end(job_id, keep=keep))


def test_what_a_job_is_done_with_goes_and_what_can_be_gone_on_with_stays(transfers, partials):
    begun(transfers, "one", HERE)
    end(transfers, "one", keep=True)
    assert left(partials) == {HERE, ELSEWHERE}
    begun(transfers, "two", HERE)
    end(transfers, "two")
    assert left(partials) == {ELSEWHERE}


def test_it_stays_while_another_job_works_with_it(transfers, partials):
    begun(transfers, "one", HERE)
    begun(transfers, "two", HERE)
    end(transfers, "one")
    assert HERE in left(partials)
    end(transfers, "two", keep=True)
    assert HERE not in left(partials), "one of them was done with it"


def test_it_stays_until_every_job_has_looked_whether_it_needs_it(transfers, partials):
    begun(transfers, "one", HERE)
    begun(transfers, "two")
    end(transfers, "one")
    assert HERE in left(partials)
    transfers.found("two", ELSEWHERE)
    end(transfers, "two", keep=True)
    assert left(partials) == {ELSEWHERE}


def test_it_stays_while_a_job_waits_that_asks_for_the_same_address(transfers, partials, queue):
    queue.enqueue(PullSpec("two", "hf.co/o/r"), (Step("fetch"),))
    begun(transfers, "one", HERE)
    end(transfers, "one")
    assert HERE in left(partials)
    waiting = queue.claim()
    transfers.begin(waiting.id, waiting.spec)
    transfers.found(waiting.id, HERE)
    end(transfers, waiting.id)
    assert HERE not in left(partials)


def test_adapters_are_fetched_as_pulls_are_and_other_jobs_fetch_nothing(transfers, partials):
    transfers.begin("adapter", AdapterSpec("voice", StoredFile("m:F16", "sha256:" + "a" * 64), source="hf.co/o/a"))
    transfers.found("adapter", HERE)
    transfers.begin("import", ImportSpec("m", path="/m"))
    transfers.found("import", ELSEWHERE)
    end(transfers, "import")
    end(transfers, "adapter")
    assert left(partials) == {ELSEWHERE}


def test_nothing_that_a_process_holds_is_removed(transfers, partials):
    begun(transfers, "one", HERE)
    with hold(partials.root / HERE, lambda: None):
        end(transfers, "one")
        assert HERE in left(partials)
        assert partials.idle(-1.0).keys() == {partials.root / ELSEWHERE}
        assert not partials.discard_idle(partials.root / HERE, -1.0)


@pytest.mark.parametrize("name", ["..", ".", "", "../blobs", "pull-1/../..", "/etc", "pull-XY", "pull-"])
def test_a_name_that_leads_out_of_the_transfers_removes_nothing(transfers, partials, name):
    begun(transfers, "one", name)
    end(transfers, "one")
    assert left(partials) == {HERE, ELSEWHERE}
    assert partials.root.parent.exists()


def test_an_empty_folder_is_not_kept(transfers, partials):
    (partials.root / HERE / "file").unlink()
    begun(transfers, "one", HERE)
    end(transfers, "one", keep=True)
    assert left(partials) == {ELSEWHERE}


@pytest.mark.parametrize(
    ("status", "code", "result", "kept"),
    [
        (JobStatus.SUCCEEDED, None, ("m:F16",), False),
        (JobStatus.CANCELLED, None, (), True),
        (JobStatus.QUEUED, None, ("m:F16",), True),
        (JobStatus.FAILED, "remote_failed", (), True),
        (JobStatus.FAILED, "disk_full", (), True),
        (JobStatus.FAILED, "name_taken", (), True),
        (JobStatus.FAILED, "job_child_died", (), True),
        (JobStatus.FAILED, "job_child_died", ("m:F16",), False),
        (JobStatus.FAILED, "invalid_model", (), False),
        (JobStatus.FAILED, "not_supported", (), False),
    ],
)
def test_only_what_can_still_become_something_is_gone_on_with(status, code, result, kept):
    error = None if code is None else JobError(code, "why")
    assert is_gone_on_with(status, error, result) is kept


def test_two_that_hold_one_folder_take_turns_and_find_it_as_it_was_left(tmp_path):
    folder, waited = tmp_path / HERE, []

    def release():
        waited.append(True)
        first.close()

    first = held(folder)
    next(first)
    (folder / "file").write_bytes(b"x")
    with hold(folder, release):
        assert (folder / "file").read_bytes() == b"x"
    assert waited


def held(folder):
    with hold(folder, lambda: None):
        yield
