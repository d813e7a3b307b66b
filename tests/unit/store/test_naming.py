"""Which variant a name means: the table, and what holds for every store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.catalog import FileFacts, Lineage, ModelShape, Variant
from service.domain.errors import Conflict, InvalidName, LabelMismatch
from service.domain.names import parse_ref, split_tag
from service.domain.quants import QUANTIZATIONS
from service.store.naming import (
    CopyPlan,
    DeletePlan,
    aliases_in,
    best,
    check_canonical,
    check_label,
    choose,
    choose_source,
    plan_copy,
    plan_delete,
)


def _variant(variant_id: int, flavour: str, label: str, *tags: str, model: str = "gloss") -> Variant:
    facts = FileFacts(label, 1, 4.5, 1, ModelShape("llama"))
    key = parse_ref(model).key
    digest = f"sha256:{variant_id:064x}"
    return Variant(variant_id, key, flavour, label, digest, 1, facts, Lineage("imported"), "", tags=tags)


F16 = _variant(1, "", "F16")
Q8 = _variant(2, "", "Q8_0")
Q4 = _variant(3, "", "Q4_K_M")
INSTRUCT_Q4 = _variant(4, "instruct", "Q4_K_M")
INSTRUCT_Q2 = _variant(5, "Instruct", "Q2_K")
ODD = _variant(6, "", "UNKNOWN")
ODD_INSTRUCT = _variant(7, "instruct", "UNKNOWN")
Q8_LATEST = _variant(2, "", "Q8_0", "latest")
Q2_PROD = _variant(8, "", "Q2_K", "Prod", "v1.0")
F16_INSTRUCT_TAG = _variant(1, "", "F16", "instruct")


@pytest.mark.parametrize(
    ("name", "variants", "expected"),
    [
        # a label is that label, in any case and through the aliases
        ("gloss:Q4_K_M", [F16, Q8, Q4], Q4),
        ("gloss:q4_k", [F16, Q8, Q4], Q4),
        ("GLOSS:q8_0", [F16, Q8, Q4], Q8),
        ("gloss:Q5_K_M", [F16, Q8, Q4], None),
        # and never one of another flavour
        ("gloss:Q2_K", [F16, INSTRUCT_Q2], None),
        ("gloss:Q4_K_M", [INSTRUCT_Q4, Q4], Q4),
        ("gloss:instruct-q4_K", [INSTRUCT_Q4, Q4], INSTRUCT_Q4),
        ("gloss:INSTRUCT-q2_k", [INSTRUCT_Q4, INSTRUCT_Q2], INSTRUCT_Q2),
        ("gloss:other-Q4_K_M", [INSTRUCT_Q4, Q4], None),
        # bare and latest: the recommended one
        ("gloss", [F16, Q8, Q4], Q4),
        ("gloss:latest", [F16, Q8, Q4], Q4),
        ("gloss:Latest", [F16, Q8], Q8),
        ("gloss", [ODD, F16], F16),
        ("gloss", [ODD], ODD),
        ("gloss", [], None),
        # no flavour comes before any flavour
        ("gloss", [INSTRUCT_Q4, F16], F16),
        ("gloss", [INSTRUCT_Q2, INSTRUCT_Q4], INSTRUCT_Q4),
        # unless the owner chose
        ("gloss", [F16, Q8_LATEST, Q4], Q8_LATEST),
        ("gloss:LATEST", [F16, Q8_LATEST, Q4], Q8_LATEST),
        # a free word: the tag
        ("gloss:prod", [Q4, Q2_PROD], Q2_PROD),
        ("gloss:PROD", [Q4, Q2_PROD], Q2_PROD),
        ("gloss:v1.0", [Q4, Q2_PROD], Q2_PROD),
        ("gloss:v1", [Q4, Q2_PROD], None),
        # else the flavour's best
        ("gloss:instruct", [Q4, INSTRUCT_Q2, INSTRUCT_Q4], INSTRUCT_Q4),
        ("gloss:instruct", [INSTRUCT_Q4, F16_INSTRUCT_TAG], F16_INSTRUCT_TAG),
        ("gloss:nothing", [Q4, INSTRUCT_Q4], None),
        # a file without a known label is still reached by its canonical name
        ("gloss:unknown", [Q4, ODD], ODD),
        ("gloss:instruct-UNKNOWN", [Q4, ODD, ODD_INSTRUCT], ODD_INSTRUCT),
        ("gloss:instruct", [ODD_INSTRUCT], ODD_INSTRUCT),
    ],
)
def test_a_name_means_one_variant(name: str, variants: list[Variant], expected: Variant | None) -> None:
    assert choose(parse_ref(name), variants) is expected
    assert choose(parse_ref(name), variants[::-1]) is expected


def test_the_recommended_variant_does_not_depend_on_order() -> None:
    assert best([F16, Q4, INSTRUCT_Q4]) is best([INSTRUCT_Q4, Q4, F16]) is Q4
    assert best([]) is None


def test_aliases_are_short_labels_tags_the_flavour_and_the_default_names() -> None:
    found = aliases_in([Q4, Q2_PROD, INSTRUCT_Q4])
    assert found[3] == ["gloss", "gloss:Q4_K", "gloss:latest"]
    assert found[8] == ["gloss:Prod", "gloss:v1.0"]
    assert found[4] == ["gloss:instruct", "gloss:instruct-Q4_K"]


def test_aliases_keep_host_and_namespace() -> None:
    far = _variant(1, "", "Q4_K_M", model="hf.co/People/Gloss")
    assert aliases_in([far])[1] == ["hf.co/People/Gloss", "hf.co/People/Gloss:Q4_K", "hf.co/People/Gloss:latest"]


def test_a_flavour_that_looks_like_a_label_is_no_alias() -> None:
    assert aliases_in([_variant(1, "x-Q4_K", "Q8_0"), Q4])[1] == []


_WORDS = st.sampled_from(["instruct", "Instruct", "latest", "x-Q4_K", "prod", "a-b", "UNKNOWN", "q4", "x"])
_LABELS = st.sampled_from([*QUANTIZATIONS, "UNKNOWN"])


@st.composite
def _models(draw: st.DrawFn) -> list[Variant]:
    pair = st.tuples(st.just("") | _WORDS, _LABELS)
    pairs = draw(st.lists(pair, max_size=8, unique_by=lambda pair: (pair[0].lower(), pair[1])))
    model = draw(st.sampled_from(["gloss", "People/Gloss", "hf.co:8080/a/b.c"]))
    variants = [_variant(i, flavour, label, model=model) for i, (flavour, label) in enumerate(pairs)]
    canonical = {variant.tag.lower() for variant in variants}
    words = draw(st.lists(_WORDS.filter(lambda w: split_tag(w)[1] is None), max_size=4, unique_by=str.lower))
    for word in words:
        if variants and word.lower() not in canonical:
            at = draw(st.integers(0, len(variants) - 1))
            old = variants[at]
            variants[at] = _variant(old.id, old.flavour, old.quantization, *old.tags, word, model=model)
    return variants


@given(_models())
def test_every_canonical_name_and_every_alias_reaches_its_variant(variants: list[Variant]) -> None:
    found = aliases_in(variants)
    for variant in variants:
        for name in (variant.name, variant.name.upper(), *found[variant.id]):
            chosen = choose(parse_ref(name), variants)
            assert chosen is not None
            assert chosen.id == variant.id, name


@given(_models())
def test_no_name_is_an_alias_of_two_variants(variants: list[Variant]) -> None:
    names = [name.lower() for aliases in aliases_in(variants).values() for name in aliases]
    names += [variant.name.lower() for variant in variants]
    assert len(names) == len(set(names))


def test_an_import_under_another_label_is_refused_with_the_right_name() -> None:
    with pytest.raises(LabelMismatch, match="gloss:Q8_0"):
        check_label(parse_ref("gloss:q4_k"), "Q8_0")
    check_label(parse_ref("gloss:q8_0"), "Q8_0")
    check_label(parse_ref("gloss:instruct"), "Q8_0")


def test_a_flavour_must_leave_room_for_the_label() -> None:
    key = parse_ref("gloss").key
    check_canonical(key, "x" * 75, "Q8_0")
    with pytest.raises(InvalidName, match="shorter"):
        check_canonical(key, "x" * 76, "Q8_0")


@pytest.mark.parametrize(
    ("destination", "expected"),
    [
        ("gloss", CopyPlan(None, "latest")),
        ("gloss:latest", CopyPlan(None, "latest")),
        ("gloss:Prod", CopyPlan(None, "Prod")),
        ("gloss:q4_k", CopyPlan("", None)),
        ("gloss:best-q4_k", CopyPlan("best", None)),
        ("other", CopyPlan("", None)),
        ("other:latest", CopyPlan("", "latest")),
        ("other:prod", CopyPlan("", "prod")),
        ("other:q4_k_m", CopyPlan("", None)),
        ("other:tiny-Q4_K", CopyPlan("tiny", None)),
    ],
)
def test_a_copy_writes_a_tag_or_a_variant(destination: str, expected: CopyPlan) -> None:
    assert plan_copy(Q4, parse_ref(destination)) == expected


@pytest.mark.parametrize("destination", ["gloss:auto", "other:AUTO", "other:auto-Q4_K_M"])
def test_nothing_can_be_called_auto(destination: str) -> None:
    with pytest.raises(InvalidName, match="reserved"):
        plan_copy(Q4, parse_ref(destination))
    with pytest.raises(InvalidName, match="reserved"):
        check_canonical(parse_ref(destination).key, "Auto", "Q4_K_M")


def test_a_copy_cannot_change_the_label() -> None:
    with pytest.raises(LabelMismatch):
        plan_copy(Q4, parse_ref("other:Q8_0"))


def test_a_copy_of_a_file_without_a_known_label_to_its_own_name_writes_no_tag() -> None:
    assert plan_copy(ODD, parse_ref("gloss:unknown")) == CopyPlan(None, None)
    assert plan_copy(ODD, parse_ref("other:unknown")) == CopyPlan("", None)


@pytest.mark.parametrize(
    ("name", "variants", "expected"),
    [
        ("gloss", [F16, INSTRUCT_Q4], DeletePlan(variants=(F16, INSTRUCT_Q4))),
        ("gloss", [], None),
        ("gloss:q4_k", [F16, Q4], DeletePlan(variants=(Q4,))),
        ("gloss:q5_k", [F16, Q4], None),
        ("gloss:UNKNOWN", [ODD, Q4], DeletePlan(variants=(ODD,))),
        ("gloss:PROD", [Q4, Q2_PROD], DeletePlan(word="prod")),
        ("gloss:latest", [Q4, Q8_LATEST], DeletePlan(word="latest")),
        ("gloss:nothing", [Q4], None),
    ],
)
def test_a_deletion_removes_what_the_name_says(name: str, variants: list[Variant], expected: DeletePlan | None) -> None:
    assert plan_delete(parse_ref(name), variants) == expected


@pytest.mark.parametrize("name", ["gloss:latest", "gloss:instruct"])
def test_a_word_that_only_reaches_a_variant_by_rule_deletes_nothing(name: str) -> None:
    with pytest.raises(Conflict, match="by rule; delete gloss:"):
        plan_delete(parse_ref(name), [Q4, INSTRUCT_Q4])


def _source(variant_id: int, flavour: str, label: str, bits: float, *tags: str, lossy: bool = True) -> Variant:
    made = _variant(variant_id, flavour, label, *tags)
    return replace(made, facts=replace(made.facts, bits_per_weight=bits, quantized_tensors=lossy))


SOURCE_F16 = _source(1, "", "F16", 16.0, lossy=False)
SOURCE_F32 = _source(2, "", "F32", 32.0, lossy=False)
SOURCE_Q4 = _source(3, "", "Q4_K_M", 5.0, "latest")
SOURCE_Q8 = _source(4, "", "Q8_0", 8.5, "prod")
SOURCE_TINY = _source(5, "tiny", "F16", 16.0, lossy=False)


@pytest.mark.parametrize(
    ("name", "variants", "expected"),
    [
        # bare: what has lost least, whatever it is served by
        ("gloss", [SOURCE_Q4, SOURCE_F16, SOURCE_Q8], SOURCE_F16),
        ("gloss:latest", [SOURCE_Q4, SOURCE_F16], SOURCE_F16),
        ("gloss", [SOURCE_F16, SOURCE_F32], SOURCE_F32),
        ("gloss", [SOURCE_Q4, SOURCE_Q8], SOURCE_Q8),
        ("gloss", [SOURCE_TINY, SOURCE_F16], SOURCE_F16),
        ("gloss", [SOURCE_TINY, SOURCE_Q8], SOURCE_TINY),
        ("gloss", [], None),
        # a level or a tag of the owner's is what it says
        ("gloss:q4_k", [SOURCE_Q4, SOURCE_F16], SOURCE_Q4),
        ("gloss:prod", [SOURCE_Q8, SOURCE_F16], SOURCE_Q8),
        # a flavour: the same within it
        ("gloss:tiny", [SOURCE_F32, SOURCE_TINY], SOURCE_TINY),
        ("gloss:other", [SOURCE_F32], None),
    ],
)
def test_a_bare_name_is_quantized_from_what_has_lost_least(
    name: str, variants: list[Variant], expected: Variant | None
) -> None:
    assert choose_source(parse_ref(name), variants) is expected
