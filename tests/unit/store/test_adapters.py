"""Adapters in the catalogue: names within their model, bytes that stay as long as somebody needs them."""

from __future__ import annotations

import pytest

from service.domain.catalog import AdapterFacts, Lineage
from service.domain.errors import AdapterNotFound, Conflict, InvalidName, ModelNotFound, NameTaken
from service.domain.names import parse_ref

FACTS = AdapterFacts("llama", 4, 8.0, 2, 100, "about horses")
GLOSS, OTHER = parse_ref("gloss").key, parse_ref("hf.co/me/other").key
ONE, TWO = f"sha256:{1:064x}", f"sha256:{2:064x}"


@pytest.fixture
def adapters(catalog, make):
    for name in ("gloss", "hf.co/me/other"):
        catalog.add_variant(parse_ref(name), make(name.encode(), "Q8_0"), Lineage(origin="imported"))
    return catalog.adapters


def test_an_adapter_is_found_by_model_and_name_in_any_case(adapters):
    added = adapters.add(GLOSS, "Tone", ONE, 10, FACTS)
    assert (added.name, added.digest, added.size_bytes, added.facts, added.corrupt) == ("Tone", ONE, 10, FACTS, False)
    assert adapters.get(parse_ref("GLOSS").key, "tONE") == added
    assert adapters.all() == adapters.all(GLOSS) == [added]
    assert adapters.all(OTHER) == []


def test_a_name_is_one_file_within_its_model_and_another_in_the_next(adapters):
    first = adapters.add(GLOSS, "tone", ONE, 10, FACTS)
    assert adapters.add(GLOSS, "TONE", ONE, 10, FACTS) == first
    with pytest.raises(NameTaken):
        adapters.add(GLOSS, "Tone", TWO, 10, FACTS)
    adapters.add(OTHER, "tone", TWO, 10, FACTS)
    adapters.add(GLOSS, "voice", ONE, 10, FACTS)
    assert [(one.model.model, one.name) for one in adapters.all()] == [
        ("other", "tone"), ("gloss", "tone"), ("gloss", "voice"),
    ]  # fmt: skip


def test_an_unknown_name_is_told_with_those_that_are_there(adapters):
    with pytest.raises(AdapterNotFound, match="it has none"):
        adapters.get(GLOSS, "tone")
    for name in ("tone", "voice"):
        adapters.add(GLOSS, name, ONE, 10, FACTS)
    with pytest.raises(AdapterNotFound, match="it has tone, voice"):
        adapters.find(GLOSS, ["tone", "tune"])
    assert list(adapters.find(GLOSS, ["VOICE", "tone"])) == ["VOICE", "tone"]


def test_there_is_no_adapter_without_a_model_or_with_a_name_that_is_none(adapters):
    with pytest.raises(ModelNotFound):
        adapters.add(parse_ref("nobody").key, "tone", ONE, 10, FACTS)
    with pytest.raises(InvalidName):
        adapters.add(GLOSS, "a/b", ONE, 10, FACTS)


def test_its_blob_is_in_use_until_the_last_name_of_it_is_deleted(adapters, catalog):
    for name in ("tone", "voice"):
        adapters.add(GLOSS, name, ONE, 10, FACTS)
    assert catalog.blob(ONE).in_use
    with pytest.raises(Conflict):
        catalog.forget_blob(ONE)
    assert adapters.delete(GLOSS, "Tone").name == "tone"
    assert catalog.forget_unused(frozenset(), 0.0) == []
    adapters.delete(GLOSS, "voice")
    assert not catalog.blob(ONE).in_use
    assert catalog.forget_unused(frozenset(), 0.0) == [ONE]
    with pytest.raises(AdapterNotFound):
        adapters.delete(GLOSS, "voice")


def test_adapters_go_with_the_last_variant_of_their_model_and_not_before(adapters, catalog, make):
    catalog.add_variant(parse_ref("gloss"), make(b"more", "F16"), Lineage(origin="imported"))
    adapters.add(GLOSS, "tone", ONE, 10, FACTS)
    adapters.add(OTHER, "tone", ONE, 10, FACTS)
    adapters.add(GLOSS, "voice", TWO, 10, FACTS)
    catalog.delete(parse_ref("gloss:F16"))
    assert len(adapters.all(GLOSS)) == 2
    catalog.delete(parse_ref("gloss:Q8_0"))
    assert [one.model.model for one in adapters.all()] == ["other"]
    assert catalog.blob(ONE).in_use, "another model's adapter is made of it"
    assert catalog.blob(TWO) is None


def test_a_damaged_file_is_told_of(adapters, catalog):
    adapters.add(GLOSS, "tone", ONE, 10, FACTS)
    catalog.mark_corrupt(ONE, True)
    assert adapters.get(GLOSS, "tone").corrupt
