"""What the catalogue answers, and what each change does to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event

from service.domain.catalog import LevelPlan, Lineage, Recipe, Variant
from service.domain.errors import (
    BlobNotFound,
    Conflict,
    InvalidName,
    LabelMismatch,
    ModelNotFound,
    NameTaken,
    QuantryError,
)
from service.domain.jobs import ImportSpec, MadeFile, Step
from service.domain.names import parse_ref
from service.jobs.queue import JobQueue
from service.store.catalog import Catalog
from service.store.database import read

Make = Callable[..., MadeFile]

IMPORTED = Lineage(origin="imported")


@pytest.fixture
def add(catalog: Catalog, make: Make) -> Callable[..., Variant]:
    """add(name, content, quantization): an import."""

    def _add(name: str, content: bytes, quantization: str = "Q8_0") -> Variant:
        return catalog.add_variant(parse_ref(name), make(content, quantization), IMPORTED)

    return _add


@contextmanager
def _counted(engine: Engine) -> Iterator[list[str]]:
    """The SELECTs sent meanwhile."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT"):
            sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield sent
    event.remove(engine, "before_cursor_execute", note)


Add = Callable[..., Variant]


# --- add and resolve ---------------------------------------------------------------------------------------------


def test_what_is_added_comes_back_whole(catalog: Catalog, make: Make) -> None:
    lineage = Lineage("quantized", "sha256:" + "1" * 64, "Gloss:F16", Recipe("Q4_K_M", True), "b1", 2.5, True)
    made = make(b"a", "Q4_K_M")
    variant = catalog.add_variant(parse_ref("Gloss:q4_k"), made, lineage)
    assert variant.name == "Gloss:Q4_K_M"
    assert (variant.digest, variant.size_bytes, variant.facts) == (made.digest, 1, made.facts)
    assert variant.lineage == lineage
    assert not variant.corrupt
    assert variant.tags == ()
    assert catalog.resolve("gloss:Q4_K") == catalog.variant(variant.id) == variant
    assert catalog.variants() == [variant]


def test_an_import_takes_its_flavour_from_the_name_and_its_label_from_the_file(add: Add, catalog: Catalog) -> None:
    assert add("gloss", b"a").name == "gloss:Q8_0"
    assert add("gloss:latest", b"b", "F16").name == "gloss:F16"
    assert add("gloss:Instruct", b"c", "Q4_K_M").name == "gloss:Instruct-Q4_K_M"
    assert add("gloss:instruct-q2_k", b"d", "Q2_K").name == "gloss:Instruct-Q2_K"
    assert add("GLOSS:q6_k", b"e", "Q6_K").name == "gloss:Q6_K"
    assert catalog.resolve("gloss:instruct").quantization == "Q4_K_M"
    assert catalog.resolve("gloss").quantization == "Q6_K"


def test_a_quantized_level_goes_beside_its_source(catalog: Catalog, make: Make, add: Add) -> None:
    source = add("people/gloss:instruct", b"a", "F16")
    lineage = Lineage("quantized", source.digest)
    level = catalog.add_variant((source.model, source.flavour), make(b"b", "Q4_K_M"), lineage)
    assert level.name == "people/gloss:instruct-Q4_K_M"


def test_a_label_in_the_name_must_be_the_files(add: Add, catalog: Catalog) -> None:
    with pytest.raises(LabelMismatch):
        add("gloss:Q4_K_M", b"a", "Q8_0")
    assert catalog.blobs() == []


def test_a_tag_without_room_for_the_label_is_refused(add: Add, catalog: Catalog) -> None:
    with pytest.raises(InvalidName):
        add("gloss:" + "x" * 80, b"a")
    assert catalog.blobs() == []


def test_the_same_file_under_the_same_name_is_the_same_variant(add: Add, catalog: Catalog) -> None:
    assert add("gloss", b"a") == add("GLOSS:q8_0", b"a")
    assert len(catalog.variants()) == 1


def test_another_file_under_a_taken_name_is_refused_and_leaves_nothing(add: Add, catalog: Catalog, make: Make) -> None:
    first = add("gloss", b"a")
    with pytest.raises(NameTaken, match="gloss:Q8_0 is another file; delete it first, or copy or import to another"):
        catalog.add_variant(parse_ref("gloss"), make(b"b", plans=(LevelPlan("Q4_K_M", 1, 4.5, False),)), IMPORTED)
    assert catalog.variants() == [first]
    assert catalog.referenced_digests() == {first.digest}


def test_a_name_that_is_not_there_is_answered_with_the_closest(add: Add, catalog: Catalog) -> None:
    with pytest.raises(ModelNotFound, match="import it first"):
        catalog.resolve("gloss")
    add("gloss", b"a")
    add("people/gloss", b"b")
    add("smollm2", b"c")
    with pytest.raises(ModelNotFound, match="closest names are gloss, people/gloss") as missing:
        catalog.resolve("glos:q8_0")
    assert missing.value.param == "model"
    with pytest.raises(ModelNotFound, match="closest names are gloss:Q8_0"):
        catalog.resolve("gloss:q4_k")
    with pytest.raises(ModelNotFound, match="gloss:Q8_0"):
        catalog.resolve("gloss:zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz")
    with pytest.raises(ModelNotFound, match="import it first"):
        catalog.resolve("zzzzzzzz")


def test_hosts_and_namespaces_keep_models_apart(add: Add, catalog: Catalog) -> None:
    names = ["gloss", "people/gloss", "hf.co/people/gloss", "hf.co:8080/people/gloss"]
    for i, name in enumerate(names):
        add(name, bytes([i]))
    for i, name in enumerate(names):
        assert catalog.resolve(name).name == f"{name}:Q8_0"
        assert [v.name for v in catalog.variants(name)] == [f"{name}:Q8_0"]
        assert catalog.resolve(f"https://{name.upper()}:q8_0").id == i + 1
    assert catalog.resolve("registry.ollama.ai/library/gloss").id == 1


def test_an_id_is_never_given_twice(add: Add, catalog: Catalog) -> None:
    first = add("gloss", b"a")
    catalog.delete(parse_ref("gloss"))
    second = add("gloss", b"b")
    assert second.id > first.id
    with pytest.raises(ModelNotFound):
        catalog.variant(first.id)


def test_an_undone_change_is_not_remembered(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    add("other", b"b")
    catalog.copy(source, parse_ref("third:first-q8_0"))
    catalog.variants()
    with pytest.raises(NameTaken):
        catalog.copy(source, parse_ref("other:prod"))
    fourth = add("fourth", b"d", "F16")
    assert catalog.variants()[0] == fourth
    assert catalog.resolve("fourth") == fourth


# --- copy --------------------------------------------------------------------------------------------------------


def test_a_copy_within_the_model_is_a_tag_that_can_move(add: Add, catalog: Catalog) -> None:
    q8, q4 = add("gloss", b"a"), add("gloss", b"b", "Q4_K_M")
    assert catalog.copy(q8, parse_ref("gloss:Prod")).tags == ("Prod",)
    assert catalog.resolve("gloss:prod").id == q8.id
    assert catalog.copy(q4, parse_ref("gloss:prod")).tags == ("prod",)
    assert catalog.resolve("gloss:PROD").id == q4.id
    assert catalog.variant(q8.id).tags == ()
    catalog.copy(q8, parse_ref("gloss"))
    assert catalog.resolve("gloss").id == catalog.resolve("gloss:latest").id == q8.id
    assert len(catalog.variants()) == 2


def test_a_copy_to_another_model_is_a_second_variant_of_one_blob(add: Add, catalog: Catalog) -> None:
    source = add("gloss:instruct", b"a")
    assert catalog.copy(source, parse_ref("other")).name == "other:Q8_0"
    tagged = catalog.copy(source, parse_ref("third:prod"))
    assert (tagged.name, tagged.tags) == ("third:Q8_0", ("prod",))
    assert catalog.copy(source, parse_ref("third:tiny-q8_0")).name == "third:tiny-Q8_0"
    assert {v.digest for v in catalog.variants()} == {source.digest}
    assert len(catalog.blobs()) == 1
    assert catalog.resolve("third:prod").lineage == source.lineage


def test_a_copy_may_be_repeated(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    for name in ("other:prod", "gloss:prod", "gloss:q8_0", "other"):
        assert catalog.copy(source, parse_ref(name)) == catalog.copy(source, parse_ref(name))
    assert len(catalog.variants()) == 2


def test_a_copy_onto_another_file_is_refused_and_sets_no_tag(add: Add, catalog: Catalog) -> None:
    source, taken = add("gloss", b"a"), add("other", b"b")
    with pytest.raises(NameTaken, match="delete it first, or copy"):
        catalog.copy(source, parse_ref("other:prod"))
    with pytest.raises(LabelMismatch):
        catalog.copy(source, parse_ref("other:q4_k"))
    assert catalog.variants("other") == [taken]


def test_a_tag_cannot_hide_a_canonical_name(add: Add, catalog: Catalog) -> None:
    odd, known = add("gloss", b"a", "UNKNOWN"), add("gloss", b"b")
    with pytest.raises(NameTaken):
        catalog.copy(known, parse_ref("gloss:unknown"))
    assert catalog.copy(odd, parse_ref("gloss:unknown")) == odd


def test_a_copy_of_what_is_gone_is_refused(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    catalog.delete(parse_ref("gloss"))
    with pytest.raises(ModelNotFound):
        catalog.copy(source, parse_ref("other"))
    assert catalog.variants() == []


# --- delete ------------------------------------------------------------------------------------------------------


def test_a_deleted_label_is_one_variant_with_its_tags_and_its_blob_row(add: Add, catalog: Catalog) -> None:
    q8, q4 = add("gloss", b"a"), add("gloss", b"b", "Q4_K_M")
    catalog.copy(q8, parse_ref("gloss:prod"))
    catalog.add_measurement(q8.id, "load", 1.0, "seconds")
    assert [v.id for v in catalog.delete(parse_ref("gloss:Q8_0"))] == [q8.id]
    assert catalog.variants() == [q4]
    assert catalog.referenced_digests() == {q4.digest}
    with pytest.raises(ModelNotFound):
        catalog.resolve("gloss:prod")


def test_a_blob_that_another_variant_needs_keeps_its_row(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    copied = catalog.copy(source, parse_ref("other"))
    catalog.delete(parse_ref("gloss"))
    assert catalog.referenced_digests() == {source.digest}
    catalog.delete(parse_ref(copied.name))
    assert catalog.referenced_digests() == frozenset()


def test_a_deleted_tag_is_the_tag_alone(add: Add, catalog: Catalog) -> None:
    q8 = add("gloss", b"a")
    add("gloss", b"b", "Q4_K_M")
    catalog.copy(q8, parse_ref("gloss:latest"))
    assert catalog.delete(parse_ref("gloss:latest")) == []
    assert catalog.resolve("gloss").quantization == "Q4_K_M"
    with pytest.raises(Conflict, match=r"delete gloss:Q4_K_M"):
        catalog.delete(parse_ref("gloss:latest"))
    assert len(catalog.variants()) == 2


def test_a_deleted_tag_is_gone_in_its_own_model_only(add: Add, catalog: Catalog) -> None:
    for model in ("gloss", "other"):
        catalog.copy(add(model, model.encode()), parse_ref(f"{model}:prod"))
    catalog.delete(parse_ref("gloss:prod"))
    assert catalog.resolve("other:prod").name == "other:Q8_0"
    with pytest.raises(ModelNotFound):
        catalog.resolve("gloss:prod")


def test_a_model_that_comes_again_is_spelled_anew(add: Add, catalog: Catalog) -> None:
    add("Gloss", b"a")
    assert add("gloss", b"b", "F16").name == "Gloss:F16"
    catalog.delete(parse_ref("gloss"))
    assert add("gloss", b"a").name == "gloss:Q8_0"


def test_a_list_forgets_what_was_deleted(add: Add, catalog: Catalog) -> None:
    add("gloss", b"a")
    catalog.variants()
    catalog.delete(parse_ref("gloss"))
    assert catalog.variants() == []
    assert catalog._memory._known == {}


def test_a_bare_name_deletes_the_whole_model_and_nothing_else(add: Add, catalog: Catalog) -> None:
    ids = {add("gloss", b"a").id, add("gloss:instruct", b"b").id}
    other = add("other", b"c")
    assert {v.id for v in catalog.delete(parse_ref("GLOSS"))} == ids
    assert catalog.variants() == [other]
    with pytest.raises(ModelNotFound):
        catalog.delete(parse_ref("gloss"))


# --- aliases and lists -------------------------------------------------------------------------------------------


def test_every_alias_resolves_to_its_variant(add: Add, catalog: Catalog) -> None:
    q8, q4 = add("gloss", b"a"), add("gloss", b"b", "Q4_K_M")
    instruct = add("gloss:instruct", b"c", "Q5_K_M")
    far = add("hf.co/people/gloss", b"d", "Q3_K_M")
    catalog.copy(q8, parse_ref("gloss:latest"))
    catalog.copy(q4, parse_ref("gloss:prod"))
    for _ in range(2):
        found = catalog.aliases_of(catalog.variants())
        assert found == {v.id: catalog.aliases(v) for v in catalog.variants()}
        for variant_id, names in found.items():
            assert all(catalog.resolve(name).id == variant_id for name in names)
    assert found[q8.id] == ["gloss", "gloss:latest"]
    assert found[q4.id] == ["gloss:Q4_K", "gloss:prod"]
    assert found[instruct.id] == ["gloss:instruct", "gloss:instruct-Q5_K"]
    assert len(found[far.id]) == 3
    catalog.delete(parse_ref("gloss:latest"))
    assert catalog.aliases_of([q8, q4]) == {q8.id: [], q4.id: ["gloss", "gloss:Q4_K", "gloss:prod", "gloss:latest"]}
    catalog.delete(parse_ref("gloss:q4_k"))
    assert catalog.aliases_of([q4, far])[q4.id] == []
    assert catalog.aliases_of([]) == {}


def test_lists_cost_a_fixed_number_of_queries(add: Add, catalog: Catalog, engine: Engine) -> None:
    counts = []
    for size in (3, 30):
        for i in range(size):
            variant = add(f"model{i}", f"{size}{i}".encode(), "Q4_K_M" if size == 3 else "Q8_0")
            catalog.copy(variant, parse_ref(f"model{i}:prod"))
        catalog.variants()
        with _counted(engine) as sent:
            listed = catalog.variants()
            catalog.aliases_of(listed)
            catalog.measurements_of(v.id for v in listed)
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 9


def test_a_name_is_resolved_in_one_query_from_indexes(add: Add, catalog: Catalog, engine: Engine) -> None:
    add("gloss", b"a")
    with _counted(engine) as sent:
        catalog.resolve("gloss:q8_0")
    assert len(sent) == 1
    with read(engine) as connection:
        parameters = ("registry.ollama.ai/library/gloss",)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sent[0]}", parameters).all()
    steps = [row[3] for row in plan if not row[3].startswith("USE TEMP")]
    assert all(step.startswith("SEARCH") for step in steps), steps


def test_a_list_shows_what_changed_since_the_last(add: Add, catalog: Catalog, engine: Engine) -> None:
    a, b = add("a", b"a"), add("b", b"b")
    assert catalog.variants() == [a, b]
    other = Catalog(engine)
    other.copy(b, parse_ref("b:prod"))
    other.copy(b, parse_ref("b:best"))
    other.mark_corrupt(a.digest, corrupt=True)
    other.delete(parse_ref("a"))
    other.mark_corrupt(b.digest, corrupt=True)
    for _ in range(2):
        (only,) = catalog.variants()
        assert (only.id, only.tags, only.corrupt) == (b.id, ("best", "prod"), True)
    other.mark_corrupt(b.digest, corrupt=False)
    other.delete(parse_ref("b:best"))
    assert catalog.variants() == other.variants() == [catalog.variant(b.id)]


def test_a_name_costs_a_query_only_after_something_was_written(add: Add, catalog: Catalog, engine: Engine) -> None:
    a, b = add("a", b"a"), add("b", b"b")
    assert catalog.remembered("a") is None
    assert catalog.resolve("a") == catalog.remembered("a") == a
    assert catalog.remembered("b") is None
    Catalog(engine).mark_corrupt(a.digest, corrupt=True)
    assert catalog.remembered("a") is None
    assert catalog.resolve("a").corrupt
    catalog.copy(b, parse_ref("c:prod"))
    assert catalog.resolve("c:prod").digest == b.digest
    catalog.delete(parse_ref("c:prod"))
    assert catalog.remembered("c:prod") is None


# --- blobs, plans, figures ---------------------------------------------------------------------------------------


def test_an_upload_has_a_row_until_it_is_forgotten_or_unused_for_long(add: Add, catalog: Catalog, make: Make) -> None:
    used = add("gloss", b"used")
    one, two = make(b"one").digest, make(b"two").digest
    for digest in (one, two):
        catalog.add_blob(digest, 3)
        catalog.add_blob(digest, 3)
    assert {blob.digest: blob.in_use for blob in catalog.blobs()} == {used.digest: True, one: False, two: False}
    assert all(catalog.blob(blob.digest) == blob for blob in catalog.blobs())
    assert catalog.blob("sha256:" + "0" * 64) is None
    assert catalog.forget_unused(frozenset(), grace_seconds=3600) == []
    assert catalog.forget_unused(frozenset({one}), grace_seconds=0) == [two]
    assert catalog.forget_blob(one)
    assert not catalog.forget_blob(one)
    with pytest.raises(Conflict, match="delete the model"):
        catalog.forget_blob(used.digest)
    assert catalog.referenced_digests() == {used.digest}


def test_a_blob_that_a_job_names_is_kept_also_by_a_sweep_that_began_before_the_job(
    engine: Engine, catalog: Catalog, make: Make
) -> None:
    one, two = make(b"one").digest, make(b"two").digest
    for digest in (one, two):
        catalog.add_blob(digest, 3)
    queue = JobQueue(engine, max_queued=5)
    keep = queue.active_digests()
    job, _ = queue.enqueue(ImportSpec("gloss", digest=one), (Step("check"),))
    assert catalog.forget_unused(keep, grace_seconds=0) == [two]
    with pytest.raises(Conflict, match="A job needs"):
        catalog.forget_blob(one, spare_jobs=True)
    queue.request_cancel(job.id)
    assert catalog.forget_unused(keep, grace_seconds=0) == [one]


@pytest.mark.parametrize("digest", ["", "sha256:xyz", "../../etc/passwd"])
def test_only_a_digest_becomes_a_row(catalog: Catalog, digest: str) -> None:
    with pytest.raises(InvalidName):
        catalog.add_blob(digest, 1)


def test_a_corrupt_blob_marks_every_variant_made_of_it(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    catalog.copy(source, parse_ref("other"))
    catalog.mark_corrupt(source.digest, corrupt=True)
    assert [v.corrupt for v in catalog.variants()] == [True, True]
    catalog.mark_corrupt(source.digest, corrupt=False)
    assert [v.corrupt for v in catalog.variants()] == [False, False]
    with pytest.raises(BlobNotFound):
        catalog.mark_corrupt("sha256:" + "0" * 64, corrupt=True)


def test_plans_keep_their_order_and_go_with_the_blob(catalog: Catalog, make: Make) -> None:
    planned = (LevelPlan("Q8_0", 20, 8.5, False, ("a",), (("F32", 1),)), LevelPlan("IQ1_S", 0, 0.0, True, error="no"))
    made = make(b"a", plans=planned)
    catalog.add_variant(parse_ref("gloss"), made, IMPORTED)
    assert catalog.plans(made.digest) == list(planned)
    catalog.add_variant(parse_ref("other"), make(b"a"), IMPORTED)
    assert catalog.plans(made.digest) == list(planned)
    catalog.add_variant(parse_ref("third"), make(b"a", plans=planned[:1]), IMPORTED)
    assert catalog.plans(made.digest) == list(planned[:1])
    for name in ("gloss", "other", "third"):
        catalog.delete(parse_ref(name))
    assert catalog.plans(made.digest) == []


def test_a_newer_figure_takes_the_place_of_the_older(add: Add, catalog: Catalog) -> None:
    variant, other = add("gloss", b"a"), add("other", b"b")
    catalog.add_measurement(variant.id, "load", 1.5, "seconds")
    catalog.add_measurement(variant.id, "load", 1.25, "seconds")
    catalog.add_measurement(variant.id, "generation", 98.0, "tokens_per_second")
    found = [(m.name, m.value, m.unit) for m in catalog.measurements(variant.id)]
    assert found == [("generation", 98.0, "tokens_per_second"), ("load", 1.25, "seconds")]
    assert catalog.measurements_of([variant.id, other.id])[other.id] == []
    with pytest.raises(ModelNotFound):
        catalog.add_measurement(999, "load", 1.0, "seconds")


def test_the_rung_is_remembered_by_machine_and_file(add: Add, catalog: Catalog) -> None:
    digest = add("gloss", b"a").digest
    assert catalog.rung("here", digest) is None
    catalog.set_rung("here", digest, "plain")
    catalog.set_rung("here", digest, "no_repack")
    catalog.set_rung("here", "sha256:" + "0" * 64, "plain")
    assert catalog.rung("here", digest) == "no_repack"
    assert catalog.rung("there", digest) is None
    catalog.delete(parse_ref("gloss"))
    assert catalog.rung("here", digest) is None


def test_refusals_are_of_the_error_tree_and_show_no_sql(add: Add, catalog: Catalog) -> None:
    source = add("gloss", b"a")
    add("other", b"b")
    calls: list[Callable[[], object]] = [
        lambda: catalog.resolve("gloss:nothing"),
        lambda: catalog.resolve("'; DROP TABLE models; --"),
        lambda: catalog.copy(source, parse_ref("other")),
        lambda: catalog.delete(parse_ref("third")),
        lambda: catalog.variant(2**40),
        lambda: catalog.add_measurement(-1, "a", 1.0, "b"),
    ]
    for call in calls:
        with pytest.raises(QuantryError) as refused:
            call()
        assert not any(word in refused.value.message for word in ("SELECT", "sqlite", "UNIQUE", "FOREIGN"))
