"""What a bundle's job enters in the store, without a child: names, tags, lineage, figures; and what it leaves alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.domain.catalog import AdapterFacts, Lineage, Variant
from service.domain.errors import (
    BlobCorrupt,
    BlobNotFound,
    InvalidModel,
    InvalidName,
    InvalidParameter,
    LabelMismatch,
    NameTaken,
)
from service.domain.evaluation import Card, Speed, TaskScore
from service.domain.generation import AdapterUse
from service.domain.importance import ImportanceFacts
from service.domain.jobs import BundleSpec, JobStatus
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.domain.recipes import Recipe, TypeOverride
from service.jobs.assignments.bundle import BundleAssignment
from service.jobs.messages import AdapterMade, BundlePart, BundleTask, Calibrated, Made, PartKind
from service.jobs.submission import canonical
from service.store import care
from service.store.bundles.gathering import gather
from service.store.bundles.packing import StoredFile, pack
from tests.unit.jobs.laboratory_home import Home

CARD = Card("there", "b1", 1.0, speed=Speed(1, 1, 1.0, 1, 1.0, 1), tasks=(TaskScore("words", "sha256:0", 1, 2),))
IMPORTANCE = ImportanceFacts(1, 512, ("text",), ())
LORA = AdapterFacts("llama", 4, 8.0, 2, 64)
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
    catalog = home.stores.catalog
    contents = gather(catalog, home.stores.laboratory, parse_ref("gloss"), catalog.variants("gloss"), whole=True)
    parts = pack(contents).parts
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
        models = [part for part in assignment.task.parts if part.kind is PartKind.MODEL]
        by_name = dict(zip([part.target for part in models], labels, strict=True))
        for number, part in enumerate(assignment.task.parts):
            if part.kind is not PartKind.MODEL:
                assignment.accept(_with_a_model(number, part, archive))
                continue
            label = by_name[part.target]
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


def _with_a_model(number: int, part: BundlePart, archive: bytes) -> Calibrated | AdapterMade:
    """As a child leaves an importance matrix or an adapter."""
    content = archive[part.offset :][: part.size_bytes]
    if not part.stored:
        Path(part.target).write_bytes(content)
    made = (number, part.target, part.digest, len(content))
    return Calibrated(*made, IMPORTANCE) if part.kind is PartKind.IMPORTANCE else AdapterMade(*made, LORA)


def add_matrix(home: Home, content: bytes = b"a matrix", model: str = "gloss") -> str:
    digest = home.put(content)
    key = parse_ref(model).key
    home.stores.laboratory.add_importance_matrix(
        key, digest, len(content), IMPORTANCE, made_from="x", source_digest=home.source.digest
    )
    return digest


def add_adapter(home: Home, name: str, content: bytes = b"an adapter") -> str:
    digest = home.put(content)
    home.stores.catalog.adapters.add(parse_ref("gloss").key, name, digest, len(content), LORA)
    return digest


def add_preset(home: Home, word: str, preset: Preset, tag: str = "Q8_0") -> None:
    catalog = home.stores.catalog
    variant = catalog.copy(catalog.resolve(f"gloss:{tag}"), parse_ref(f"gloss:{word}"))
    catalog.presets.put(parse_ref(f"gloss:{word}"), variant, preset)


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


# --- what goes with the model ------------------------------------------------------------------------------------


def test_importance_matrices_adapters_and_presets_come_with_the_model(there: Home, here: Home, tmp_path: Path) -> None:
    matrix, adapter = add_matrix(there), add_adapter(there, "tone")
    owned = there.add(b"brought", "Q4_0", Lineage("imported"))
    preset = Preset("Be brief.", "{{ x }}", {"top_k": 3}, parent="gloss:Q8_0", adapters=(AdapterUse("tone", 0.5),))
    add_preset(there, "pirate", dataclasses.replace(preset, owned=(owned.id,)))
    spec = BundleSpec(path=bundle_of(there, tmp_path), name="mine/other")
    done = run(here, spec, "F16", "Q8_0", "Q4_0")
    assert [step.name for step in done.steps] == [
        "F16", "Q8_0", "Q4_0", f"importance matrix {matrix[7:19]}", "adapter tone"
    ]  # fmt: skip
    catalog, key = here.stores.catalog, parse_ref("mine/other").key
    (stored,) = here.stores.laboratory.importance_matrices(key)
    assert (stored.digest, stored.source_digest, stored.facts) == (matrix, there.source.digest, IMPORTANCE)
    (tone,) = catalog.adapters.all(key)
    assert (tone.name, tone.digest, tone.facts) == ("tone", adapter, LORA)
    found = catalog.presets.find(parse_ref("mine/other:pirate"))
    brought = catalog.resolve("mine/other:Q4_0")
    assert found == dataclasses.replace(preset, parent="mine/other:Q8_0", owned=(brought.id,))
    assert here.stores.blobs.verify(matrix)
    assert here.stores.blobs.verify(adapter)
    assert list(done.remarks()) == []
    again = run(here, spec)
    assert again.task is None
    assert {step.detail for step in again.steps} == {"already stored"}
    assert list(again.remarks()) == []


def test_a_level_goes_out_with_what_it_needs_and_no_more(there: Home) -> None:
    used, _ = add_matrix(there, b"used"), add_matrix(there, b"not used")
    other = add_matrix(there, b"of another model", "other")
    for name in ("tone", "voice"):
        add_adapter(there, name, name.encode())
    recipe = Recipe("Q4_0", importance_matrix=used)
    level = there.add(b"four bits", "Q4_0", Lineage("quantized", there.source.digest, there.source.name, recipe))
    add_preset(there, "pirate", Preset(adapters=(AdapterUse("TONE"),)), tag="Q4_0")
    stores, ref = there.stores, parse_ref("gloss")
    level = stores.catalog.variant(level.id)
    found = gather(stores.catalog, stores.laboratory, ref, [level], whole=False)
    assert [matrix.digest for matrix in found.matrices] == [used]
    assert [adapter.name for adapter in found.adapters] == ["tone"]
    assert set(found.presets) == {"pirate"}
    everything = gather(stores.catalog, stores.laboratory, ref, stores.catalog.variants("gloss"), whole=True)
    assert len(everything.adapters) == len(everything.matrices) == 2
    assert other not in {matrix.digest for matrix in everything.matrices}
    stores.catalog.mark_corrupt(used, True)
    with pytest.raises(BlobCorrupt):
        gather(stores.catalog, stores.laboratory, ref, [level], whole=False)


def test_an_adapter_is_tried_beside_the_smallest_file_of_each_flavour(there: Home, here: Home, tmp_path: Path) -> None:
    add_adapter(there, "tone")
    there.add(b"small", "Q4_0", Lineage("imported"), flavour="1b")
    task = BundleAssignment(BundleSpec(path=bundle_of(there, tmp_path)), here.bench()).task
    assert isinstance(task, BundleTask)
    kept = {part.name: part.keep for part in task.parts if part.keep}
    assert set(kept) == {"gloss:Q8_0", "gloss:1b-Q4_0"}
    (adapter,) = (part for part in task.parts if part.kind is PartKind.ADAPTER)
    assert set(adapter.bases) == set(kept.values())
    assert task.parts[-1] is adapter  # after its bases


def test_an_adapter_whose_base_is_stored_is_tried_beside_that(there: Home, here: Home, tmp_path: Path) -> None:
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    add_adapter(there, "tone")
    spec = BundleSpec(path=bundle_of(there, tmp_path), name="copy")
    task = BundleAssignment(spec, here.bench()).task
    assert isinstance(task, BundleTask)
    (part,) = task.parts
    assert part.bases == (str(here.stores.blobs.path(names(here)["gloss:Q8_0"].digest)),)
    run(here, spec)  # its model is entered before it
    assert [adapter.model.display for adapter in here.stores.catalog.adapters.all()] == ["copy"]


def test_two_adapters_of_one_file_are_copied_once(there: Home, here: Home, tmp_path: Path) -> None:
    for name in ("tone", "voice"):
        add_adapter(there, name)
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    assert [adapter.name for adapter in here.stores.catalog.adapters.all()] == ["tone", "voice"]


def test_another_adapter_of_that_name_refuses_the_bundle_at_once(there: Home, here: Home, tmp_path: Path) -> None:
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    add_adapter(here, "Tone", b"mine")
    add_adapter(there, "tone")
    with pytest.raises(NameTaken):
        BundleAssignment(BundleSpec(path=bundle_of(there, tmp_path)), here.bench())


def test_what_a_name_adds_here_already_stays_and_is_told(there: Home, here: Home, tmp_path: Path) -> None:
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    mine = Preset("Be polite.")
    add_preset(here, "pirate", mine)
    add_preset(there, "pirate", Preset("Arr."))
    add_preset(there, "clerk", Preset("Sir?", adapters=(AdapterUse("gone"),)))
    done = run(here, BundleSpec(path=bundle_of(there, tmp_path)))
    assert here.stores.catalog.presets.of_model(parse_ref("gloss")) == {"pirate": mine}
    (remark,) = done.remarks()
    assert done.steps[remark.step].name == "Q8_0"
    assert "pirate" in remark.detail
    assert "clerk" in remark.detail


def test_a_variant_that_was_here_before_does_not_go_with_a_name_that_came(
    there: Home, here: Home, tmp_path: Path
) -> None:
    mine = here.add(b"eight bits", "Q8_0", Lineage("imported", llama_build="mine"))
    add_preset(there, "pirate", Preset("Arr.", owned=(there.stores.catalog.resolve("gloss:Q8_0").id,)))
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16")
    found = here.stores.catalog.presets.find(parse_ref("gloss:pirate"))
    assert found is not None
    assert (found.system, found.owned) == ("Arr.", ())
    assert here.stores.catalog.variant(mine.id).lineage.llama_build == "mine"


def test_a_matrix_that_a_bundle_brought_never_counts_as_computed_here(there: Home, here: Home, tmp_path: Path) -> None:
    add_matrix(there)
    run(here, BundleSpec(path=bundle_of(there, tmp_path)), "F16", "Q8_0")
    assert here.stores.laboratory.find_importance_matrix("x") is None


def test_a_damaged_matrix_or_adapter_is_written_again(there: Home, here: Home, tmp_path: Path) -> None:
    digests = [add_matrix(there), add_adapter(there, "tone")]
    spec = BundleSpec(path=bundle_of(there, tmp_path))
    run(here, spec, "F16", "Q8_0")
    for digest in digests:
        care.condemn(here.stores.catalog, here.stores.blobs, digest)
    run(here, spec)
    assert all(here.stores.blobs.verify(digest) for digest in digests)
    assert not any(blob.corrupt for blob in here.stores.catalog.blobs())


def test_a_blob_that_is_known_to_be_damaged_is_not_read_though_its_file_is_still_there(there: Home) -> None:
    digest = there.source.digest
    assert there.bench().blob(digest, "it") == str(there.stores.blobs.path(digest))
    there.stores.catalog.mark_corrupt(digest, True)  # and then the server was killed, before the file was set aside
    with pytest.raises(BlobCorrupt):
        there.bench().blob(digest, "it")
