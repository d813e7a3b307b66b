"""What a bundle's job enters in the store, without a child: names, tags, lineage, figures; and what it leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.catalog import Lineage, Variant
from service.domain.errors import (
    BlobNotFound,
    InvalidModel,
    InvalidName,
    InvalidParameter,
    LabelMismatch,
    NameTaken,
)
from service.domain.evaluation import Card, Speed, TaskScore
from service.domain.jobs import BundleSpec, JobStatus
from service.domain.names import parse_ref
from service.domain.recipes import Recipe, TypeOverride
from service.jobs.assignments.bundle import BundleAssignment
from service.jobs.messages import BundleTask, Made
from service.jobs.submission import canonical
from service.store.bundles.packing import StoredFile, pack
from tests.unit.jobs.laboratory_home import Home

CARD = Card("there", "b1", 1.0, speed=Speed(1, 1, 1.0, 1, 1.0, 1), tasks=(TaskScore("words", "sha256:0", 1, 2),))
MIX = Recipe("Q4_0", overrides=(TypeOverride("ffn_down", "Q8_0"),))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Home]:
    home = _home(tmp_path / "there")
    home.add(
        b"eight bits", "Q8_0", Lineage("quantized", home.source.digest, home.source.name, Recipe("Q8_0"), "b1", 2.0)
    )
    yield home
    home.engine.dispose()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Home]:
    home = _home(tmp_path / "here")
    home.stores.catalog.delete(parse_ref("gloss"))
    yield home
    home.engine.dispose()


def _home(folder: Path) -> Home:
    folder.mkdir()
    return Home(folder)


def bundle_of(home: Home, folder: Path) -> str:
    variants = home.stores.catalog.variants("gloss")
    cards = home.stores.laboratory.cards([variant.id for variant in variants])
    parts = pack(variants, cards, {}).parts
    path = folder / "gloss.tar"
    with path.open("wb") as file:
        for part in parts:
            file.write(home.stores.blobs.path(part.digest).read_bytes() if isinstance(part, StoredFile) else part)
    return str(path)


def run(home: Home, spec: BundleSpec, *labels: str) -> BundleAssignment:
    """Carry the assignment out as a child would that finds these labels."""
    assignment = BundleAssignment(spec, home.bench())
    if assignment.task is not None:
        assert isinstance(assignment.task, BundleTask)
        archive = Path(assignment.task.source).read_bytes()
        for number, (part, label) in enumerate(zip(assignment.task.parts, labels, strict=True)):
            if part.stored:
                file = dataclasses.replace(
                    home.write("seen", archive[part.offset :][: part.size_bytes], label), path=part.stored
                )
                (home.stores.blobs.incoming / "seen").unlink()
            else:
                file = home.write(Path(part.target).name, archive[part.offset :][: part.size_bytes], label)
            assert file.digest == part.digest
            assignment.accept(Made(number, file, "b1"))
    assignment.conclude()
    return assignment


def names(home: Home) -> dict[str, Variant]:
    return {variant.name: variant for variant in home.stores.catalog.variants()}


def test_everything_that_is_believed_is_restored(there: Home, here: Home, tmp_path: Path) -> None:
    q8 = there.stores.catalog.resolve("gloss:Q8_0")
    for word in ("prod", "latest"):
        there.stores.catalog.copy(q8, parse_ref(f"gloss:{word}"))
    there.stores.laboratory.add_card(q8.id, CARD)
    done = run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    assert done.result() == ("gloss:F16", "gloss:Q8_0")
    found = names(here)["gloss:Q8_0"]
    assert (found.digest, found.tags) == (q8.digest, ("latest", "prod"))
    lineage = found.lineage
    assert (lineage.origin, lineage.source_digest, lineage.source_name) == (
        "imported",
        there.source.digest,
        "gloss:F16",
    )
    assert (lineage.recipe, lineage.llama_build) == (Recipe("Q8_0"), "b1")
    card = here.stores.laboratory.cards([found.id])[found.id]
    assert (card.machine, card.speed, card.tasks) == ("there", None, CARD.tasks)


def test_a_new_name_is_that_of_the_source_as_well(there: Home, here: Home, tmp_path: Path) -> None:
    run(here, BundleSpec(path=bundle_of(there, tmp_path), name="mine/other"), "F16", "Q8_0")
    assert set(names(here)) == {"mine/other:F16", "mine/other:Q8_0"}
    assert names(here)["mine/other:Q8_0"].lineage.source_name == "mine/other:F16"


def test_a_second_run_does_only_what_is_missing(there: Home, here: Home, tmp_path: Path) -> None:
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    first = BundleAssignment(spec, here.bench())
    assert isinstance(first.task, BundleTask)
    part = first.task.parts[0]
    content = Path(first.task.source).read_bytes()[part.offset :][: part.size_bytes]
    first.accept(Made(0, here.write(Path(part.target).name, content), "b1"))
    assert first.result() == ("gloss:F16",)  # and then it was killed
    again = BundleAssignment(spec, here.bench())
    assert isinstance(again.task, BundleTask)
    assert [part.name for part in again.task.parts] == ["gloss:Q8_0"]
    assert [step.status for step in again.steps] == [JobStatus.SUCCEEDED, JobStatus.QUEUED]
    assert again.step_of(0) == 1
    assert run(here, spec, "Q8_0").result() == ("gloss:F16", "gloss:Q8_0")
    nothing_left = run(here, spec)
    assert nothing_left.task is None
    assert nothing_left.result() == ("gloss:F16", "gloss:Q8_0")


def test_an_upload_that_is_no_variant_yet_is_looked_at_where_it_lies(there: Home, here: Home, tmp_path: Path) -> None:
    file = here.write("upload", b"eight bits")
    here.stores.blobs.commit(Path(file.path), file.digest, file.size_bytes)
    here.stores.catalog.add_blob(file.digest, file.size_bytes)
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    task = BundleAssignment(spec, here.bench()).task
    assert isinstance(task, BundleTask)
    assert [bool(part.stored) for part in task.parts] == [False, True]
    assert run(here, spec, "F16", "Q8_0").result() == ("gloss:F16", "gloss:Q8_0")


def test_a_damaged_blob_is_written_again(there: Home, here: Home, tmp_path: Path) -> None:
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    run(here, spec, "F16", "Q8_0")
    digest = names(here)["gloss:Q8_0"].digest
    path = here.stores.blobs.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"rotten bit")
    here.stores.catalog.mark_corrupt(digest, True)
    run(here, spec, "Q8_0")
    assert path.read_bytes() == b"eight bits"
    assert not names(here)["gloss:Q8_0"].corrupt


def test_a_tag_that_means_another_variant_here_stays(there: Home, here: Home, tmp_path: Path) -> None:
    there.stores.catalog.copy(there.stores.catalog.resolve("gloss:Q8_0"), parse_ref("gloss:prod"))
    mine = here.add(b"mine", "Q4_0", Lineage("imported"))
    here.stores.catalog.copy(mine, parse_ref("gloss:prod"))
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    assert names(here)["gloss:Q4_0"].tags == ("prod",)
    assert names(here)["gloss:Q8_0"].tags == ()


def test_figures_that_were_measured_here_stay(there: Home, here: Home, tmp_path: Path) -> None:
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    run(here, spec, "F16", "Q8_0")
    found = names(here)["gloss:Q8_0"]
    here.stores.laboratory.add_card(found.id, dataclasses.replace(CARD, machine="here"))
    there.stores.laboratory.add_card(there.stores.catalog.resolve("gloss:Q8_0").id, CARD)
    run(here, BundleSpec(path=bundle_of(there, tmp_path)))
    assert here.stores.laboratory.cards([found.id])[found.id].machine == "here"


def test_a_file_that_is_not_the_level_it_is_called_is_refused(there: Home, here: Home, tmp_path: Path) -> None:
    with pytest.raises(LabelMismatch):
        run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q2_K")
    assert set(names(here)) == {"gloss:F16"}


def test_a_mix_keeps_the_level_of_its_recipe(there: Home, here: Home, tmp_path: Path) -> None:
    there.add(b"a mix", "Q4_0", Lineage("quantized", there.source.digest, there.source.name, MIX), flavour="mix")
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    task = BundleAssignment(spec, here.bench()).task
    assert isinstance(task, BundleTask)
    assert task.parts[2].name == "gloss:mix"  # whatever its types look like
    run(here, spec, "F16", "Q8_0", "UNKNOWN")
    assert names(here)["gloss:mix-Q4_0"].lineage.recipe == MIX


def test_two_names_of_one_file_are_one_part(there: Home, here: Home, tmp_path: Path) -> None:
    there.stores.catalog.copy(there.stores.catalog.resolve("gloss:Q8_0"), parse_ref("gloss:twin-Q8_0"))
    done = run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    assert done.result() == ("gloss:F16", "gloss:Q8_0", "gloss:twin-Q8_0")


def test_a_name_that_stands_for_another_file_is_refused_at_once(there: Home, here: Home, tmp_path: Path) -> None:
    here.add(b"mine", "Q8_0", Lineage("imported"))
    with pytest.raises(NameTaken):
        BundleAssignment(BundleSpec(path=bundle_of(there, tmp_path)), here.bench())


def test_what_no_bundle_can_be_made_of_is_refused(here: Home, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameter):
        canonical(BundleSpec(), here.stores)
    with pytest.raises(InvalidName):
        canonical(BundleSpec(path="/x", name="gloss:F16"), here.stores)
    with pytest.raises(BlobNotFound):
        BundleAssignment(BundleSpec(digest="sha256:" + "0" * 64), here.bench())
    (tmp_path / "empty.tar").touch()
    with pytest.raises(InvalidModel):
        BundleAssignment(BundleSpec(path=str(tmp_path / "empty.tar")), here.bench())
