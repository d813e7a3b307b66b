"""Datasets, importance matrices and cards in the database, and the blobs that they keep."""

from __future__ import annotations

import hashlib

import pytest
from sqlalchemy import Engine

from service.domain.catalog import Lineage, Variant
from service.domain.datasets import DatasetKind
from service.domain.errors import Conflict, DatasetNotFound, ImportanceMatrixNotFound, InvalidName, ModelNotFound
from service.domain.evaluation import Card, Estimate, Speed, TaskScore, TextFigures
from service.domain.importance import ImportanceFacts
from service.domain.names import parse_ref
from service.domain.recipes import Recipe
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.datasets import BUILT_IN, enter_built_in, store_dataset
from service.store.laboratory import Laboratory
from tests.unit.store.conftest import Make

GLOSS = parse_ref("gloss").key
FACTS = ImportanceFacts(4, 512, ("calibration",), ())


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def laboratory(engine: Engine) -> Laboratory:
    return Laboratory(engine)


@pytest.fixture
def variant(catalog: Catalog, make: Make) -> Variant:
    return catalog.add_variant(parse_ref("gloss"), make(b"source", "F16"), Lineage("imported"))


def card(seconds: float = 1.0, **parts: object) -> Card:
    return Card("a machine", "llama.cpp 1", seconds, **parts)


def text(perplexity: float) -> TextFigures:
    return TextFigures("evaluation", digest_of(b"text"), 512, 4, 1024, Estimate(perplexity, 0.1), None)


# --- datasets ----------------------------------------------------------------------------------------------------


def test_a_dataset_is_found_by_its_name_in_any_case(laboratory: Laboratory, store: BlobStore) -> None:
    added = store_dataset(store, laboratory, "Mine", DatasetKind.TEXT, b"some text")
    assert laboratory.dataset("mine") == added
    assert laboratory.datasets() == [added]
    assert (added.digest, added.size_bytes, added.built_in) == (digest_of(b"some text"), 9, False)
    assert store.path(added.digest).read_bytes() == b"some text"


def test_a_dataset_of_the_same_name_takes_the_place_of_the_other(laboratory: Laboratory, store: BlobStore) -> None:
    first = store_dataset(store, laboratory, "mine", DatasetKind.TEXT, b"one")
    assert store_dataset(store, laboratory, "mine", DatasetKind.TEXT, b"one") == first
    second = store_dataset(store, laboratory, "Mine", DatasetKind.TEXT, b"two")
    assert laboratory.datasets() == [second]


@pytest.mark.parametrize("name", ["", "-a", ".", "a/b", "a b", "a" * 81, "ä"])
def test_names_of_datasets_are_plain(laboratory: Laboratory, name: str) -> None:
    with pytest.raises(InvalidName):
        laboratory.add_dataset(name, DatasetKind.TEXT, digest_of(b"x"), 1)


def test_an_unknown_dataset_is_answered_with_the_closest_names(laboratory: Laboratory, store: BlobStore) -> None:
    with pytest.raises(DatasetNotFound, match="put one first"):
        laboratory.dataset("calibration")
    enter_built_in(store, laboratory)
    with pytest.raises(DatasetNotFound, match="there are calibration"):
        laboratory.dataset("calibraton")
    with pytest.raises(DatasetNotFound):
        laboratory.delete_dataset("nothing")


def test_the_built_in_datasets_are_there_after_every_start_and_stay(laboratory: Laboratory, store: BlobStore) -> None:
    enter_built_in(store, laboratory)
    before = laboratory.datasets()
    enter_built_in(store, laboratory)
    assert laboratory.datasets() == before
    assert {dataset.name for dataset in before} == {name for name, _, _ in BUILT_IN}
    assert all(dataset.built_in and store.verify(dataset.digest) for dataset in before)
    with pytest.raises(Conflict, match="comes with quantry"):
        laboratory.delete_dataset("calibration")
    with pytest.raises(Conflict, match="another name"):
        store_dataset(store, laboratory, "Evaluation", DatasetKind.TEXT, b"mine")


def test_calibration_and_evaluation_are_different_texts(laboratory: Laboratory, store: BlobStore) -> None:
    enter_built_in(store, laboratory)
    lines = [
        {line for line in store.path(laboratory.dataset(name).digest).read_text().splitlines() if len(line) > 60}
        for name in ("calibration", "evaluation")
    ]
    assert not lines[0] & lines[1]


def test_the_blob_of_a_dataset_stays_as_long_as_the_dataset(
    laboratory: Laboratory, catalog: Catalog, store: BlobStore
) -> None:
    digest = store_dataset(store, laboratory, "mine", DatasetKind.TEXT, b"some text").digest
    assert catalog.forget_unused(frozenset(), 0.0) == []
    with pytest.raises(Conflict):
        catalog.forget_blob(digest)
    store.sweep(catalog.referenced_digests(), 0.0)
    assert store.has(digest)
    laboratory.delete_dataset("MINE")
    assert catalog.forget_unused(frozenset(), 0.0) == [digest]


def test_bytes_that_are_dataset_and_variant_at_once_outlive_either(
    laboratory: Laboratory, catalog: Catalog, variant: Variant
) -> None:
    laboratory.add_dataset("odd", DatasetKind.TEXT, variant.digest, variant.size_bytes)
    catalog.delete(parse_ref("gloss:F16"))
    assert variant.digest in catalog.referenced_digests()
    assert laboratory.dataset("odd").size_bytes == variant.size_bytes


# --- importance matrices -----------------------------------------------------------------------------------------


def test_a_matrix_is_found_by_its_digest_its_model_and_what_it_was_made_from(laboratory: Laboratory) -> None:
    digest = digest_of(b"matrix")
    added = laboratory.add_importance_matrix(GLOSS, digest, 6, FACTS, made_from="k", source_digest=digest_of(b"source"))
    assert laboratory.importance_matrix(digest) == added
    assert laboratory.find_importance_matrix("k") == added
    assert laboratory.find_importance_matrix("other") is None
    assert laboratory.importance_matrices() == laboratory.importance_matrices(parse_ref("GLOSS").key) == [added]
    assert laboratory.importance_matrices(parse_ref("other").key) == []
    assert (added.facts, added.size_bytes, added.model) == (FACTS, 6, "gloss")
    assert laboratory.add_importance_matrix(GLOSS, digest, 6, FACTS, made_from="again") == added
    with pytest.raises(ImportanceMatrixNotFound):
        laboratory.importance_matrix(digest_of(b"nothing"))
    with pytest.raises(InvalidName):
        laboratory.importance_matrix("../etc/passwd")


def test_a_matrix_that_a_variant_was_made_with_stays(
    laboratory: Laboratory, catalog: Catalog, make: Make, variant: Variant
) -> None:
    digest = digest_of(b"matrix")
    laboratory.add_importance_matrix(GLOSS, digest, 6, FACTS, made_from="k")
    recipe = Recipe("Q4_0", importance_matrix=digest)
    lineage = Lineage("quantized", variant.digest, variant.name, recipe)
    catalog.add_variant((GLOSS, ""), make(b"level", "Q4_0"), lineage)
    with pytest.raises(Conflict, match="gloss:Q4_0"):
        laboratory.delete_importance_matrix(digest)
    assert digest in catalog.referenced_digests()
    catalog.delete(parse_ref("gloss:Q4_0"))
    assert laboratory.delete_importance_matrix(digest).digest == digest
    assert catalog.forget_unused(frozenset(), 0.0) == [digest]
    with pytest.raises(ImportanceMatrixNotFound):
        laboratory.delete_importance_matrix(digest)


# --- cards -------------------------------------------------------------------------------------------------------


def test_a_card_holds_the_newest_figures_of_all_runs(laboratory: Laboratory, variant: Variant) -> None:
    speed = Speed(2, 512, 1000.0, 64, 100.0, 1 << 20)
    scores = TaskScore("words", digest_of(b"words"), 1, 2), TaskScore("other", digest_of(b"other"), 3, 4)
    laboratory.add_card(variant.id, card(text=text(30.0), tasks=scores))
    laboratory.add_card(variant.id, card(2.0, speed=speed))
    better = TaskScore("words", digest_of(b"words"), 2, 2)
    newest = laboratory.add_card(variant.id, card(3.0, tasks=(better,)))
    found = laboratory.cards([variant.id, 4711])
    assert found.keys() == {variant.id}
    assert found[variant.id].text == text(30.0)
    assert found[variant.id].speed == speed
    assert found[variant.id].tasks == (scores[1], better)
    assert (found[variant.id].created_at, found[variant.id].seconds) == (newest.created_at, 3.0)
    assert [run.seconds for run in laboratory.evaluations(variant.id)] == [3.0, 2.0, 1.0]


def test_cards_go_with_their_variant_and_none_comes_for_one_that_is_gone(
    laboratory: Laboratory, catalog: Catalog, variant: Variant
) -> None:
    laboratory.add_card(variant.id, card())
    catalog.delete(parse_ref("gloss"))
    assert laboratory.cards([variant.id]) == {}
    with pytest.raises(ModelNotFound):
        laboratory.add_card(variant.id, card())


def test_it_is_known_what_was_measured_by_whom_under_which_conditions(laboratory: Laboratory, variant: Variant) -> None:
    laboratory.add_card(variant.id, card(), job_id="job_1", conditions="c")
    assert laboratory.measured_under("c") == laboratory.measured_by("job_1") == {variant.id}
    assert laboratory.measured_under("d") == laboratory.measured_by("job_2") == frozenset()


def test_the_history_of_a_variant_is_bounded(laboratory: Laboratory, variant: Variant) -> None:
    for number in range(55):
        laboratory.add_card(variant.id, card(float(number)))
    runs = laboratory.evaluations(variant.id)
    assert len(runs) == 50
    assert runs[0].seconds == 54.0
