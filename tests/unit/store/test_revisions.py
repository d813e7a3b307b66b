"""What is kept of a model is read again when anything was written that lists show of it, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from service.domain.catalog import LevelPlan, Lineage, Variant
from service.domain.evaluation import Card
from service.domain.jobs import MadeFile
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.store.catalog import Catalog
from service.store.database import write
from service.store.laboratory import Laboratory
from service.store.presets import Presets
from service.store.revisions import COUNT_CHANGES
from service.store.rows import StoredModel
from service.store.tables import METADATA, variants

Make = Callable[..., MadeFile]

IMPORTED = Lineage("imported")
PLAN = LevelPlan("Q4_K_M", 1, 4.5, False)
CARD = Card(machine="m", llama_build="b1", seconds=1.0)

# `models` is counted itself; the rest is shown by routes of its own, which keep nothing.
IN_NO_LIST = {"models", "adapters", "desired", "launch_rungs", "datasets", "importance_matrices", "jobs", "job_events"}


class Home:
    """Two models of a source and a level; every test writes of the first."""

    def __init__(self, engine: Engine, make: Make) -> None:
        self.engine, self.make = engine, make
        self.catalog, self.laboratory, self.presets = Catalog(engine), Laboratory(engine), Presets(engine)
        for name in ("gloss", "other"):
            source = self.add(name, "F16")
            self.catalog.add_variant((source.model, ""), self.made(name, "Q8_0"), Lineage("quantized", source.digest))
        self.source, self.level = self.catalog.variants("gloss")

    def made(self, name: str, level: str, plans: tuple[LevelPlan, ...] = ()) -> MadeFile:
        return self.make(f"{name} {level}".encode(), level, plans)

    def add(self, name: str, level: str, plans: tuple[LevelPlan, ...] = ()) -> Variant:
        return self.catalog.add_variant(parse_ref(name), self.made(name, level, plans), IMPORTED)

    def seen(self) -> dict[str, StoredModel]:
        return {model.variants[0].model.display: model for model in self.catalog.models()}


@pytest.fixture
def home(engine: Engine, make: Make) -> Home:
    return Home(engine, make)


def with_card(home: Home) -> None:
    home.laboratory.add_card(home.level.id, CARD)


def with_preset(home: Home) -> None:
    home.presets.put(parse_ref("gloss:F16"), home.source, Preset(system="one"))


def with_tag(home: Home) -> None:
    home.catalog.copy(home.source, parse_ref("gloss:prod"))


def with_damage(home: Home) -> None:
    home.catalog.mark_corrupt(home.level.digest, True)


WRITES: dict[str, tuple[list[Callable[[Home], object]], Callable[[Home], object]]] = {
    "a variant comes": ([], lambda home: home.add("gloss", "Q6_K")),
    "a variant goes": ([], lambda home: home.catalog.delete(parse_ref("gloss:Q8_0"))),
    "it is pinned": ([], lambda home: home.catalog.pin(home.level, True)),
    "a tag comes": ([], with_tag),
    "a tag moves": ([with_tag], lambda home: home.catalog.copy(home.level, parse_ref("gloss:prod"))),
    "a tag goes": ([with_tag], lambda home: home.catalog.delete(parse_ref("gloss:prod"))),
    "a tag goes with its variant": ([with_tag], lambda home: home.catalog.delete(parse_ref("gloss:F16"))),
    "a preset comes": ([], with_preset),
    "a preset is another": (
        [with_preset],
        lambda home: home.presets.put(parse_ref("gloss:F16"), home.source, Preset(system="two")),
    ),
    "a figure comes": ([], lambda home: home.catalog.add_measurement(home.level.id, "seconds", 1.0, "seconds")),
    "it is measured": ([], with_card),
    "it is measured again": ([with_card], with_card),
    "plans come": ([], lambda home: home.add("gloss", "F16", (PLAN,))),
    "a blob is found damaged": ([], with_damage),
    "a blob is found intact": ([with_damage], lambda home: home.catalog.mark_intact([home.level.digest])),
}


@pytest.mark.parametrize("written", WRITES)
def test_what_is_written_is_read_of_that_model_alone(home: Home, written: str) -> None:
    before, write_it = WRITES[written]
    for step in before:
        step(home)
    known = home.seen()
    write_it(home)
    now = home.seen()
    assert now["gloss"].revision != known["gloss"].revision
    assert now["other"] is known["other"]
    assert list(now.values()) == Catalog(home.engine).models()


def test_what_is_in_no_list_is_no_reason_to_read_again(home: Home) -> None:
    known = home.seen()
    home.catalog.note_use(home.level.digest)
    home.catalog.set_rung("machine", home.level.digest, "full")
    home.catalog.mark_intact([home.level.digest])
    home.catalog.add_blob("sha256:" + "1" * 64, 1)
    assert all(model is known[name] for name, model in home.seen().items())


def test_a_write_that_was_undone_is_none(home: Home) -> None:
    known = home.seen()
    with pytest.raises(RuntimeError), write(home.engine) as connection:
        connection.execute(variants.update().values(pinned=True))
        raise RuntimeError
    assert all(model is known[name] for name, model in home.seen().items())
    home.catalog.pin(home.level, True)
    assert [variant.pinned for variant in home.seen()["gloss"].variants] == [False, True]


def test_a_model_of_the_same_name_made_anew_is_another(home: Home) -> None:
    home.seen()
    home.catalog.delete(parse_ref("gloss"))
    home.add("gloss", "Q2_K")
    assert [variant.quantization for variant in home.seen()["gloss"].variants] == ["Q2_K"]
    assert [variant.quantization for variant in home.catalog.variants("gloss")] == ["Q2_K"]


def test_every_table_is_watched_or_known_to_be_in_no_list() -> None:
    watched = {table for table in METADATA.tables if f" ON main.{table} " in COUNT_CHANGES}
    assert watched == METADATA.tables.keys() - IN_NO_LIST
