"""Promises of the loop that runs jobs: no trouble with one job loses its end, or keeps the place of its lane."""

from __future__ import annotations

import hashlib

import pytest

from service.domain.errors import Busy
from service.domain.jobs import ImportSpec, JobStatus
from service.jobs import dispatch


async def refused_upload(home) -> ImportSpec:
    data = b"no model at all"
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with home.blobs.open_upload(digest, len(data)) as upload:
        upload.write(data)
        upload.finish()
    return ImportSpec("bad", digest=digest)


async def test_an_upload_that_cannot_be_removed_holds_up_nobody(home, source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("not today")

    monkeypatch.setattr(dispatch, "discard_refused_upload", fail)
    bad = await home.ended(await home.runner.submit_import(await refused_upload(home)))
    assert (bad.status, bad.error.code) == (JobStatus.FAILED, "invalid_model")
    good = await home.ended(await home.runner.submit_quantize(home.levels(source, "Q8_0")))
    assert good.status is JobStatus.SUCCEEDED
    assert home.incoming() == []


async def test_an_end_that_cannot_be_stored_for_long_is_stored_when_it_can_be(
    home, source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, or a database that another process holds, for longer than a few tries."""
    monkeypatch.setattr(dispatch, "_FINISH_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(dispatch, "_MOST_FINISH_PAUSE_SECONDS", 0.02)
    finish, tries = home.queue.finish, []

    def refuse(job_id: str, *args: object, **values: object) -> object:
        tries.append(job_id)
        if len(tries) <= 12:
            raise Busy("The database is busy.")
        return finish(job_id, *args, **values)

    monkeypatch.setattr(home.queue, "finish", refuse)
    job = await home.ended(await home.runner.submit_quantize(home.levels(source, "Q8_0")))
    assert job.status is JobStatus.SUCCEEDED
    assert len(tries) == 13
