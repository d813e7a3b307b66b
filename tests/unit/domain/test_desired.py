"""How far a wish for levels has come."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import FileFacts, Lineage, ModelShape, Variant
from service.domain.desired import Desired, WishState, hindered, progress_of, to_make
from service.domain.jobs import ENDED, ImportSpec, Job, JobError, JobKind, JobStatus, QuantizeSpec, Step
from service.domain.names import parse_ref

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
LEVELS = ("Q4_K_M", "Q8_0", "IQ1_S")


def at(minutes: float) -> str:
    return (NOW + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def variant(quantization: str, flavour: str = "", **fields: Any) -> Variant:
    facts = FileFacts(quantization, 10, 16.0, 20, ModelShape("llama"))
    values: dict[str, Any] = {"digest": f"sha256:{quantization}", "size_bytes": 20, "created_at": at(-999), **fields}
    lineage = Lineage("imported")
    return Variant(1, parse_ref("gloss").key, flavour, quantization, facts=facts, lineage=lineage, **values)


SOURCE = variant("F16")


def job(status: JobStatus, *levels: str, created: float = -10, finished: float = -5, **fields: Any) -> Job:
    spec = QuantizeSpec(SOURCE.name, SOURCE.digest, levels, **fields)
    error = JobError("disk_full", "The disk is full.") if status is JobStatus.FAILED else None
    ended = at(finished) if status in ENDED else None
    return Job("job_1", JobKind.QUANTIZE, status, spec, 0.0, (), None, (), error, 1, at(created), None, ended)


def states(*jobs: Job, siblings: tuple[Variant, ...] = (SOURCE,), wished: float = -60, source: Variant = SOURCE):
    found = progress_of(Desired(LEVELS), at(wished), source, siblings, jobs, refusal, NOW)
    assert [level.quantization for level in found] == list(LEVELS)
    return {level.quantization: level for level in found}


def refusal(label: str) -> str | None:
    return "llama.cpp refuses it without an importance matrix" if label == "IQ1_S" else None


def test_what_is_not_there_and_can_be_made_is_missing_and_what_cannot_says_why() -> None:
    found = states()
    assert found["Q4_K_M"].state is WishState.MISSING
    assert found["IQ1_S"].state is WishState.IMPOSSIBLE
    assert "importance matrix" in (found["IQ1_S"].reason or "")
    assert to_make(found.values()) == ("Q4_K_M", "Q8_0")


def test_a_level_counts_only_in_the_flavour_of_the_source() -> None:
    found = states(siblings=(SOURCE, variant("Q8_0"), variant("Q4_K_M", "other")))
    assert found["Q8_0"].state is WishState.STORED
    assert found["Q4_K_M"].state is WishState.MISSING
    flavoured = replace(SOURCE, flavour="Chat")
    named = states(siblings=(variant("Q8_0", "chat"),), source=flavoured)
    assert named["Q8_0"].state is WishState.STORED
    assert named["Q4_K_M"].name == "gloss:Chat-Q4_K_M"


def test_a_level_whose_bytes_have_rotted_is_damaged_and_not_made_behind_its_back() -> None:
    found = states(siblings=(variant("Q8_0", corrupt=True),))
    assert found["Q8_0"].state is WishState.DAMAGED
    assert "Q8_0" not in to_make(found.values())


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_level_that_a_job_is_making_is_not_asked_for_again(status: JobStatus) -> None:
    found = states(job(status, "Q8_0", "Q2_K"))
    assert found["Q8_0"].state == status.value
    assert found["Q8_0"].job_id == "job_1"
    assert to_make(found.values()) == ("Q4_K_M",)


def test_jobs_for_another_source_flavour_or_kind_are_no_ones_business() -> None:
    other = replace(job(JobStatus.RUNNING, "Q8_0"), spec=QuantizeSpec("x:F16", "sha256:x", ("Q8_0",)))
    imported = replace(job(JobStatus.RUNNING, "Q8_0"), spec=ImportSpec("gloss", path="/x"))
    assert states(job(JobStatus.RUNNING, "Q8_0", flavour="mix"), other, imported)["Q8_0"].state is WishState.MISSING


def test_a_failure_rests_for_an_hour_and_a_cancellation_until_it_is_wished_for_again() -> None:
    assert states(job(JobStatus.FAILED, "Q8_0"))["Q8_0"].state is WishState.FAILED
    assert states(job(JobStatus.FAILED, "Q8_0"))["Q8_0"].reason == "The disk is full."
    long_ago = {"created": -600.0, "finished": -61.0}
    assert states(job(JobStatus.FAILED, "Q8_0", **long_ago), wished=-700)["Q8_0"].state is WishState.MISSING
    assert states(job(JobStatus.CANCELLED, "Q8_0", **long_ago), wished=-700)["Q8_0"].state is WishState.CANCELLED
    assert states(job(JobStatus.CANCELLED, "Q8_0"), wished=-1)["Q8_0"].state is WishState.MISSING


def test_a_level_is_not_kept_from_being_made_by_another_one_that_always_fails() -> None:
    """They went into one job, which ended at the first of them."""
    culprit = replace(
        job(JobStatus.FAILED, "Q4_K_M", "Q8_0"),
        steps=(Step("Q4_K_M", JobStatus.FAILED), Step("Q8_0", JobStatus.CANCELLED)),
    )
    found = states(culprit)
    assert found["Q4_K_M"].state is WishState.FAILED
    assert found["Q8_0"].state is WishState.MISSING
    assert to_make(found.values()) == ("Q8_0",)


@pytest.mark.parametrize("first", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_what_fails_before_any_level_is_begun_makes_all_of_them_rest(first: JobStatus) -> None:
    steps = (Step("importance matrix", first), Step("Q4_K_M", JobStatus.CANCELLED), Step("Q8_0", JobStatus.CANCELLED))
    assert to_make(states(replace(job(JobStatus.FAILED, "Q4_K_M", "Q8_0"), steps=steps)).values()) == ()


def test_what_hinders_a_job_from_being_queued_is_said_of_what_is_missing_alone() -> None:
    levels = hindered(tuple(states(siblings=(variant("Q8_0"),)).values()), "The disk is full.")
    reasons = {level.quantization: level.reason for level in levels}
    assert reasons["Q4_K_M"] == "The disk is full."
    assert reasons["Q8_0"] is None
    assert "importance matrix" in (reasons["IQ1_S"] or "")


def test_the_newest_job_counts() -> None:
    assert states(job(JobStatus.RUNNING, "Q8_0"), job(JobStatus.FAILED, "Q8_0"))["Q8_0"].state is WishState.RUNNING


def test_a_level_that_was_made_and_deleted_is_made_again() -> None:
    assert states(job(JobStatus.SUCCEEDED, "Q8_0"))["Q8_0"].state is WishState.MISSING


@given(
    st.lists(st.tuples(st.sampled_from(JobStatus), st.sampled_from(LEVELS)), max_size=6),
    st.sets(st.sampled_from(LEVELS)),
)
def test_what_is_stored_or_in_the_making_is_never_queued_twice(known, there) -> None:
    jobs = [job(status, level) for status, level in known]
    found = states(*jobs, siblings=tuple(variant(level) for level in there))
    newest = {level: status for status, level in reversed(known)}
    for label in to_make(found.values()):
        assert label not in there
        assert newest.get(label) not in (JobStatus.QUEUED, JobStatus.RUNNING)
