"""What is pruned can be made again, and is needed by nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.domain.catalog import Lineage, Variant
from service.domain.names import parse_ref
from service.domain.recipes import Recipe
from service.store import care
from service.store.pruning import Kind, Leaving, Rules, Uses, carry_out, plan
from tests.unit.jobs.laboratory_home import Home

ALL = Rules(age_seconds=60, unused_seconds=0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def level(home: Home, label: str) -> Variant:
    recipe = Recipe(label)
    return home.add(label.encode(), label, Lineage("quantized", home.source.digest, home.source.name, recipe, "b1"))


def going(home: Home, rules: Rules = ALL, uses: Uses | None = None) -> list[tuple[str, str]]:
    return [(one.kind.value, one.name) for one in plan(home.stores, rules, uses or Uses())]


def age(path: Path, seconds: float) -> None:
    moment = path.stat().st_mtime - seconds
    os.utime(path, (moment, moment))


def test_only_levels_that_can_be_made_again_go_and_only_when_asked_for(home: Home) -> None:
    level(home, "Q8_0")
    level(home, "Q4_0")
    assert going(home) == [("variant", "gloss:Q4_0"), ("variant", "gloss:Q8_0")]
    assert going(home, Rules(60)) == []
    assert going(home, Rules(60, levels=frozenset({"Q4_0"}))) == [("variant", "gloss:Q4_0")]
    assert going(home, Rules(60, unused_seconds=3600)) == []
    assert going(home, Rules(60, unused_seconds=0, models=frozenset({"another"}))) == []


def test_whatever_somebody_needs_stays(home: Home) -> None:
    catalog = home.stores.catalog
    variant = level(home, "Q8_0")
    kept = [
        Uses(by_jobs=frozenset({variant.digest})),
        Uses(in_memory=frozenset({variant.digest})),
        Uses(wished={variant.model.folded: frozenset({"Q8_0"})}),
    ]
    for uses in kept:
        assert going(home, uses=uses) == []
    assert going(home, uses=Uses(wished={variant.model.folded: frozenset({"Q2_K"})})) == [("variant", "gloss:Q8_0")]
    catalog.pin(variant, True)
    assert going(home) == []
    catalog.pin(variant, False)
    catalog.copy(variant, parse_ref("gloss:prod"))
    assert going(home) == []
    catalog.delete(parse_ref("gloss:prod"))
    assert going(home) == [("variant", "gloss:Q8_0")]


def test_a_source_stays_as_long_as_something_made_from_it_does(home: Home) -> None:
    middle = level(home, "Q8_0")
    lineage = Lineage("quantized", middle.digest, middle.name, Recipe("Q4_0"), "b1", lossy_source=True)
    home.add(b"from the middle", "Q4_0", lineage)
    assert going(home) == [("variant", "gloss:Q4_0")]
    carry_out(home.stores, plan(home.stores, ALL, Uses()), ALL)
    assert going(home) == [("variant", "gloss:Q8_0")]


def test_what_lost_its_source_or_whose_source_is_damaged_stays(home: Home) -> None:
    level(home, "Q8_0")
    care.condemn(home.stores.catalog, home.stores.blobs, home.source.digest)
    assert going(home) == []
    care.verify(home.stores.catalog, home.stores.blobs, home.source.digest)
    assert going(home) == [("variant", "gloss:Q8_0")]
    home.stores.catalog.delete(parse_ref("gloss:F16"))
    assert going(home) == []


def test_it_does_what_it_has_said_and_frees_what_it_has_counted(home: Home) -> None:
    blobs, catalog = home.stores.blobs, home.stores.catalog
    variant = level(home, "Q8_0")
    catalog.copy(variant, parse_ref("second"))
    age(blobs.path(variant.digest), 3600)
    stray = blobs.incoming / "stray"
    stray.write_bytes(b"stray")
    blobs.commit(stray, "sha256:" + "1" * 64, 5)
    age(blobs.path("sha256:" + "1" * 64), 7200)
    blobs._used_at.clear()
    transfer = home.stores.partials.folder("upload", "x")
    (transfer / "of-100").write_bytes(b"x" * 4096)
    for path in (transfer / "of-100", transfer):
        age(path, 7200)
    home.stores.partials._used_at.clear()
    care.condemn(catalog, blobs, home.source.digest)
    rules = Rules(age_seconds=3600, unused_seconds=0)
    before = plan(home.stores, rules, Uses())
    assert [one.kind for one in before] == [Kind.BLOB, Kind.TRANSFER]  # quarantined this moment; its source is damaged
    care.verify(catalog, blobs, home.source.digest)
    leaving = plan(home.stores, rules, Uses())
    sizes = {one.name: one.size_bytes for one in leaving}
    # Two names, one file: it goes with the last of them.
    assert (sizes["gloss:Q8_0"], sizes["second:Q8_0"]) in ((0, len(b"Q8_0")), (len(b"Q8_0"), 0))
    files = blobs.total_bytes()
    gone = carry_out(home.stores, leaving, rules)
    assert gone == leaving
    freed = sum(one.size_bytes for one in gone if one.kind is not Kind.TRANSFER)
    assert files - blobs.total_bytes() == freed
    assert not transfer.exists()
    assert plan(home.stores, rules, Uses()) == []


def test_a_quarantined_file_goes_by_its_age_and_its_variant_stays(home: Home) -> None:
    catalog, blobs = home.stores.catalog, home.stores.blobs
    care.condemn(catalog, blobs, home.source.digest)
    assert plan(home.stores, Rules(3600), Uses()) == []
    (leaving,) = plan(home.stores, Rules(0), Uses())
    assert leaving.kind is Kind.QUARANTINED
    carry_out(home.stores, [leaving], Rules(0))
    assert blobs.quarantined() == {}
    assert catalog.resolve("gloss").corrupt


def test_what_changed_since_the_plan_stays(home: Home) -> None:
    variant = level(home, "Q8_0")
    leaving = plan(home.stores, ALL, Uses())
    home.stores.catalog.pin(variant, True)
    ghost = Leaving(Kind.BLOB, home.source.digest, 1, "", digest=home.source.digest)
    assert carry_out(home.stores, [*leaving, ghost], Rules(0)) == []
    assert home.stores.blobs.has(home.source.digest)
