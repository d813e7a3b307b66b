"""Presets of names: what `create` has added to a variant under a name of its own. Server process only.

A preset lives as long as its name: it goes with its variant, and when its tag is moved or removed (changes.py).
"""

from __future__ import annotations

from sqlalchemy import Connection, Engine, delete, insert, select

from service.domain.catalog import Variant
from service.domain.errors import ModelNotFound
from service.domain.names import ModelRef
from service.domain.presets import Preset, preset_word
from service.store.database import from_json, now, read, to_json, write, writes_so_far
from service.store.tables import models, presets, variants

_NAMES_REMEMBERED = 10_000


class Presets:
    """Presets by name. Methods block on the database and may be called from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: tuple[int | None, dict[tuple[str, str], Preset | None]] = (None, {})  # as of so many writes

    def remembered(self, ref: ModelRef) -> Preset | None:
        """What `find` gave for this name. KeyError when it has to be asked again. Never blocks."""
        as_of, known = self._known
        if as_of is None or as_of != writes_so_far(self._engine):
            raise KeyError(ref.display)
        return known[ref.key.folded, preset_word(ref)]

    def find(self, ref: ModelRef) -> Preset | None:
        """The preset of that very name, or None."""
        writes = writes_so_far(self._engine)
        key = ref.key.folded, preset_word(ref)
        query = select(presets.c.preset).join(models, models.c.id == presets.c.model_id)
        with read(self._engine) as connection:
            row = connection.scalar(query.where(models.c.folded == key[0], presets.c.word_folded == key[1]))
        found = None if row is None else from_json(row, Preset)
        if writes is not None:
            as_of, known = self._known
            if as_of != writes or len(known) >= _NAMES_REMEMBERED:
                known = {}
                self._known = (writes, known)
            known[key] = found
        return found

    def put(self, ref: ModelRef, variant: Variant, preset: Preset) -> None:
        """Let a name of `variant` have this preset, in the place of any other. Raises ModelNotFound when it is gone."""
        with write(self._engine) as connection:
            model_id = connection.scalar(select(variants.c.model_id).where(variants.c.id == variant.id))
            if model_id is None:
                raise ModelNotFound("This variant has been deleted; list the variants for what is there.")
            forget(connection, model_id, preset_word(ref))
            row = {"model_id": model_id, "word_folded": preset_word(ref), "variant_id": variant.id}
            connection.execute(insert(presets), {**row, "preset": to_json(preset), "created_at": now()})

    def all(self) -> dict[tuple[str, str], Preset]:
        """Every preset, by the model's folded name and the tag in lower case."""
        query = select(models.c.folded, presets.c.word_folded, presets.c.preset)
        with read(self._engine) as connection:
            rows = connection.execute(query.join(models, models.c.id == presets.c.model_id)).all()
        return {(folded, word): from_json(preset, Preset) for folded, word, preset in rows}

    def of_model(self, ref: ModelRef) -> dict[str, Preset]:
        """All presets of a model, by the tag in lower case."""
        query = select(presets.c.word_folded, presets.c.preset).join(models, models.c.id == presets.c.model_id)
        with read(self._engine) as connection:
            rows = connection.execute(query.where(models.c.folded == ref.key.folded)).all()
        return {word: from_json(preset, Preset) for word, preset in rows}


def forget(connection: Connection, model_id: int, word_folded: str) -> None:
    """Remove the preset of a name, if it has one."""
    connection.execute(delete(presets).where(presets.c.model_id == model_id, presets.c.word_folded == word_folded))
