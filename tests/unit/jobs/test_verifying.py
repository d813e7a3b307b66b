"""Blobs read again: what the child finds, what the server makes of it, and what mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.domain.catalog import Lineage, RemoteOrigin
from service.domain.errors import BlobNotFound, ModelNotFound
from service.domain.jobs import JobKind, PullSpec, RebuildSpec, StoredFile, VerifySpec
from service.domain.names import parse_ref
from service.domain.recipes import Recipe
from service.jobs.assignments import assign
from service.jobs.lanes import Lane, kinds_in, lane_of
from service.jobs.mending import remedy_for
from service.jobs.messages import BlobToRead, Progress, Verified, VerifyTask
from service.jobs.scrubbing import within
from service.jobs.specs import digests_of, spec_key
from service.jobs.verifying import verify
from service.store import care
from tests.unit.jobs.laboratory_home import Home, digest_of


class Sent:
    """An outbox that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[object] = []

    def send(self, message: object) -> None:
        self.messages.append(message)

    def progress(self, step: int, fraction: float, detail: str | None = None) -> None:
        self.messages.append(Progress(step, fraction, detail))

    @property
    def verdicts(self) -> list[Verified]:
        return [message for message in self.messages if isinstance(message, Verified)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def run(home: Home, spec: VerifySpec, **bench: object):
    """A whole job: assignment, child, verdicts taken in."""
    assignment = assign(spec, home.bench(**bench))
    sent = Sent()
    if assignment.task is not None:
        verify(assignment.task, sent)
    for verdict in sent.verdicts:
        assignment.accept(verdict)
    return assignment, sent


def spoil(home: Home, digest: str, content: bytes) -> None:
    path = home.stores.blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(content)


# --- the child ----------------------------------------------------------------------------------------------------


def test_the_child_tells_damage_at_once_and_ends_each_step_with_the_rest(tmp_path: Path) -> None:
    contents = [b"first", b"second", b"third", b""]
    reads = []
    for number, content in enumerate(contents):
        path = tmp_path / str(number)
        path.write_bytes(content)
        reads.append(BlobToRead(digest_of(content), str(path), len(content), number // 2))
    (tmp_path / "1").write_bytes(b"sec0nd")
    (tmp_path / "3").unlink()
    (tmp_path / "3").symlink_to(tmp_path / "0")
    sent = Sent()
    verify(VerifyTask(tuple(reads), 0), sent)
    digests = [digest_of(content) for content in contents]
    assert sent.verdicts == [
        Verified(-1, damaged=(digests[1],)),
        Verified(0, intact=(digests[0],)),
        Verified(0, damaged=(digests[3],)),
        Verified(1, intact=(digests[2],)),
    ]
    fractions = [message.fraction for message in sent.messages if isinstance(message, Progress) and message.step == 0]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


# --- what becomes of it -------------------------------------------------------------------------------------------


def test_damage_is_marked_set_aside_and_told_and_the_rest_is_noted_as_read(home: Home) -> None:
    told: list[str] = []
    other = home.add(b"level 8", "Q8_0", Lineage("imported"))
    spoil(home, other.digest, b"level 9")
    assignment, _ = run(home, VerifySpec(), on_damaged=told.append)
    assert assignment.result() == (other.digest,)
    assert told == [other.digest]
    assert home.stores.catalog.resolve("gloss:Q8_0").corrupt
    assert set(home.stores.blobs.quarantined()) == {other.digest}
    (remark,) = assignment.remarks()
    assert remark.detail == "gloss:Q8_0 is damaged"
    assert assignment.steps[remark.step].name == "gloss:Q8_0"
    assert all(blob.verified_at is not None for blob in home.stores.catalog.blobs())


def test_one_model_one_variant_or_single_blobs_can_be_read(home: Home) -> None:
    home.add(b"level 8", "Q8_0", Lineage("imported"))

    def names(**spec: tuple[str, ...]) -> list[str]:
        return [step.name for step in assign(VerifySpec(**spec), home.bench()).steps]

    assert names(models=("gloss",)) == ["gloss:F16", "gloss:Q8_0"]
    assert names(models=("gloss:Q8_0",)) == ["gloss:Q8_0"]
    assert names(digests=(home.source.digest,)) == ["gloss:F16"]
    assert {"dataset calibration", "gloss:F16"} < set(names())
    with pytest.raises(ModelNotFound):
        names(models=("none",))
    with pytest.raises(BlobNotFound):
        names(digests=("sha256:" + "0" * 64,))


def test_a_large_store_is_read_in_few_steps(home: Home) -> None:
    for number in range(200):
        home.stores.catalog.add_blob(digest_of(b"%d" % number), 1)
    spec = VerifySpec(digests=tuple(digest_of(b"%d" % number) for number in range(200)))
    assignment = assign(spec, home.bench())
    assert len(assignment.steps) <= 64
    assert assignment.steps[0].name == "files 1 to 4 of 200"
    assert [blob.step for blob in assignment.task.blobs] == [number // 4 for number in range(200)]


def test_a_file_that_was_mended_or_deleted_while_it_was_read_is_not_judged_by_what_was_there(home: Home) -> None:
    digest = home.source.digest
    content = home.stores.blobs.path(digest).read_bytes()
    spoil(home, digest, content[::-1])
    assignment = assign(VerifySpec(models=("gloss",)), home.bench())
    home.stores.blobs.path(digest).unlink()
    home.bench().commit(Path(home.write("again", content).path), digest, len(content))
    assignment.accept(Verified(0, damaged=(digest,)))
    assert not home.stores.catalog.resolve("gloss").corrupt
    assert assignment.result() == ()
    home.stores.catalog.delete(parse_ref("gloss"))
    assignment.accept(Verified(0, damaged=(digest,)))
    assert assignment.result() == ()


def test_a_run_that_goes_on_remembers_what_the_one_before_has_found(home: Home) -> None:
    care.condemn(home.stores.catalog, home.stores.blobs, home.source.digest)
    home.stores.blobs.drop_quarantined(home.source.digest)
    assignment, _ = run(home, VerifySpec(models=("gloss",)), done=(home.source.digest, "job_2"))
    assert assignment.result() == (home.source.digest,)


# --- what mends it ------------------------------------------------------------------------------------------------


def test_a_level_is_made_again_a_pulled_file_fetched_and_for_the_rest_its_owner_is_asked(home: Home) -> None:
    made_here = Lineage("quantized", home.source.digest, home.source.name, Recipe("Q8_0"), "b1")
    level = home.add(b"level 8", "Q8_0", made_here)
    origin = RemoteOrigin("hf.co/owner/repo:Q4_K_M", "a" * 40, ("model.gguf",))
    pulled = home.add(b"pulled", "Q4_K_M", Lineage("pulled", remote=origin))
    assert remedy_for(level.digest, home.stores) == RebuildSpec(StoredFile(level.name, level.digest))
    remedy = remedy_for(pulled.digest, home.stores)
    assert isinstance(remedy, PullSpec)
    assert (remedy.name, remedy.source) == ("gloss:Q4_K_M", f"hf.co/owner/repo:Q4_K_M@{'a' * 40}")
    assert "import the same file again" in str(remedy_for(home.source.digest, home.stores))
    care.condemn(home.stores.catalog, home.stores.blobs, home.source.digest)
    assert "gloss:F16 is damaged as well" in str(remedy_for(level.digest, home.stores))
    home.stores.catalog.delete(parse_ref("gloss:F16"))
    assert "no longer stored" in str(remedy_for(level.digest, home.stores))
    assert "PUT /v1/blobs" in str(remedy_for(home.dataset("words").digest, home.stores))


# --- when ---------------------------------------------------------------------------------------------------------


def test_a_scrub_is_bounded_in_bytes_and_takes_one_at_least(home: Home) -> None:
    blobs = home.stores.catalog.blobs()
    sizes = [blob.size_bytes for blob in blobs]
    assert within(blobs, 0) == [blobs[0].digest]
    assert within(blobs, sizes[0] + sizes[1]) == [blob.digest for blob in blobs[:2]]
    assert within([], 100) == []


def test_reading_and_pulling_have_lanes_of_their_own_and_every_kind_has_one() -> None:
    assert kinds_in(Lane.CARE) == {JobKind.VERIFY}
    assert kinds_in(Lane.PULL) == {JobKind.PULL}
    assert frozenset[JobKind]().union(*map(kinds_in, Lane)) == frozenset(JobKind)
    assert sum(len(kinds_in(lane)) for lane in Lane) == len(JobKind)
    assert lane_of(JobKind.QUANTIZE) is Lane.WORK


def test_equal_requests_to_read_are_one_and_its_blobs_are_kept(home: Home) -> None:
    digests = (home.source.digest, home.dataset("words").digest)
    assert spec_key(VerifySpec(digests=digests)) == spec_key(VerifySpec(digests=digests[::-1]))
    assert spec_key(VerifySpec()) != spec_key(VerifySpec(repair=True))
    assert digests_of(VerifySpec(digests=digests)) == set(digests)
