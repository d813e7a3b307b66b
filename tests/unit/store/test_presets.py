"""Presets live and die with their names."""

from __future__ import annotations

import pytest

from service.domain.catalog import Lineage
from service.domain.generation import Message
from service.domain.names import parse_ref
from service.domain.presets import Preset, preset_word
from service.store.presets import Presets

PRESET = Preset(
    system="Be brief.",
    template="{{ messages }}",
    parameters={"temperature": 0.5, "top_k": 3, "stop": ["a", "b"], "penalize": True},
    licenses=("free",),
    messages=(Message("user", "Hi"), Message("assistant", "Ho")),
    parent="gloss:F16",
    owned=(1, 2),
)
NAME = parse_ref("gloss:brief")


@pytest.fixture
def presets(engine):
    return Presets(engine)


@pytest.fixture
def variant(catalog, make):
    return catalog.add_variant(parse_ref("gloss"), make(b"a"), Lineage("imported"))


@pytest.fixture
def named(catalog, presets, variant):
    """`gloss:brief`, with a preset."""
    catalog.copy(variant, NAME)
    presets.put(NAME, variant, PRESET)
    return variant


@pytest.mark.parametrize(
    ("name", "word"),
    [("gloss", "latest"), ("gloss:Latest", "latest"), ("gloss:q4_k", "q4_k_m"), ("gloss:Prod", "prod")],
)
def test_a_name_without_a_tag_is_latest(name, word):
    assert preset_word(parse_ref(name)) == word


def test_a_preset_comes_back_as_it_was_under_its_very_name(presets, named):
    assert presets.find(parse_ref("GLOSS:Brief")) == PRESET
    assert presets.find(parse_ref("gloss")) is None
    assert presets.of_model(NAME) == {"brief": PRESET}
    assert presets.all() == {(NAME.key.folded, "brief"): PRESET}


def test_what_was_found_is_remembered_until_something_is_written(presets, named):
    with pytest.raises(KeyError):
        presets.remembered(NAME)
    presets.find(NAME)
    assert presets.remembered(NAME) == PRESET
    presets.put(NAME, named, Preset(system="Be long."))
    with pytest.raises(KeyError):
        presets.remembered(NAME)
    assert presets.find(NAME) == Preset(system="Be long.")


def test_a_preset_goes_with_its_tag(catalog, presets, named):
    catalog.delete(NAME)
    assert presets.find(NAME) is None


def test_a_preset_goes_when_its_tag_moves(catalog, presets, named, make):
    other = catalog.add_variant(parse_ref("gloss"), make(b"b", "Q4_0"), Lineage("imported"))
    catalog.copy(other, NAME)
    assert presets.find(NAME) is None


def test_a_preset_goes_with_its_variant(catalog, presets, named):
    catalog.delete(parse_ref(named.name))
    assert presets.all() == {}
