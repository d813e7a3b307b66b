"""Lists that are kept part by part are at every moment what a server that has just started would say."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from service.api.listing import parts_of
from service.api.remembered import LastAnswer, Parts
from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.errors import QuantryError
from service.domain.evaluation import Card
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.store.catalog import Catalog

LISTS = ("/v1/variants", "/v1/variants?context=128", "/v1/variants?model=m1", "/v1/models", "/api/tags")
LEVELS = ("F16", "Q8_0", "Q4_K_M", "IQ1_S")


class Changes:
    """One of many things done to a store, at random."""

    def __init__(self, api, rolls: random.Random) -> None:
        self.api, self.rolls, self.catalog = api, rolls, api.catalog
        self.count = 0

    def any_variant(self) -> Variant:
        if not self.catalog.variants():
            self.add()
        return self.rolls.choice(self.catalog.variants())

    def do(self) -> str:
        self.count += 1
        written = [
            self.add,
            self.add,
            self.pin,
            self.tag,
            self.delete,
            self.damage,
            self.figure,
            self.card,
            self.preset,
        ]
        done = self.rolls.choice([*written, self.load, self.use, self.nothing])
        try:
            done()
        except QuantryError as error:
            return f"{done.__name__}: {error.code}"
        return done.__name__

    def add(self) -> None:
        self.api.add(f"m{self.rolls.randrange(3)}", self.rolls.choice(LEVELS), content=b"%d" % self.rolls.randrange(30))

    def pin(self) -> None:
        self.catalog.pin(self.any_variant(), self.rolls.random() < 0.5)

    def tag(self) -> None:
        self.catalog.copy(self.any_variant(), parse_ref(f"m{self.rolls.randrange(3)}:prod"))

    def delete(self) -> None:
        variant = self.any_variant()
        name = self.rolls.choice([variant.name, f"{variant.model.display}:prod", variant.name, variant.model.display])
        self.catalog.delete(parse_ref(name))

    def damage(self) -> None:
        self.catalog.mark_corrupt(self.any_variant().digest, self.rolls.random() < 0.5)

    def figure(self) -> None:
        self.catalog.add_measurement(self.any_variant().id, "seconds", float(self.count), "seconds")

    def card(self) -> None:
        self.api.services.laboratory.add_card(self.any_variant().id, Card("m", "b1", float(self.count)))

    def preset(self) -> None:
        variant = self.any_variant()
        self.api.services.presets.put(parse_ref(variant.name), variant, Preset(parent=f"p{self.count}"))

    def load(self) -> None:
        variant = self.any_variant()
        if self.api.pool.loaded.pop(variant.digest, None) is None:
            self.api.pool.loaded[variant.digest] = variant

    def use(self) -> None:
        self.catalog.note_use(self.any_variant().digest)

    def nothing(self) -> None:
        pass


def just_started(services: Services) -> Services:
    return replace(services, catalog=Catalog(services.catalog._engine), parts=Parts(), listing=LastAnswer())


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_is_written_the_lists_are_those_of_a_server_that_has_just_started(api, client, seed):
    changes, kept, done = Changes(api, random.Random(seed)), api.services, []
    for _ in range(40):
        done.append(changes.do())
        listed = {path: (await client.get(path)).content for path in LISTS}
        api.app.state.services = just_started(kept)
        anew = {path: (await client.get(path)).content for path in LISTS}
        api.app.state.services = kept
        assert listed == anew, done


async def test_only_the_model_that_has_changed_is_encoded_again(api, client):
    api.add("other", "F16")
    made = []

    def make(models):
        made.append([model.variants[0].model.display for model in models])
        return [(model.variants[0].name.encode(),) for model in models]

    def listed(loaded=frozenset()):
        return parts_of(api.services, "test", api.catalog.models(), make, loaded)

    gloss = api.catalog.resolve("gloss:F16")
    assert listed() == listed() == [(b"gloss:F16",), (b"other:F16",)]
    api.catalog.pin(gloss, True)
    assert listed() == listed() == listed(frozenset({gloss.digest})) == [(b"gloss:F16",), (b"other:F16",)]
    assert made == [["gloss", "other"], ["gloss"], ["gloss"]]


async def test_nothing_is_kept_where_nobody_counts_the_changes(api):
    models = [replace(model, revision=None) for model in api.catalog.models()]
    made = []
    for _ in range(2):
        parts_of(api.services, "test", models, lambda changed: [made.append(1) or (b"",) for _ in changed])
    assert len(made) == 2
