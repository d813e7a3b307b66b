"""The catalogue: models, variants, tags, blobs, plans, figures; what `resolve(name)` answers from. Server process only.

Every change is one transaction. What a name means is decided in `naming`; this file only fetches and writes rows,
and no row, SQL or integrity error leaves it. It knows blobs by digest and size, never their files.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec
from sqlalchemy import Engine, delete, insert, select, update

from service.domain.catalog import LevelPlan, Lineage, Measurement, Outside, Variant
from service.domain.jobs import MadeFile
from service.domain.names import ModelKey, ModelRef, parse_digest, parse_ref
from service.store import changes, naming
from service.store.adapters import Adapters
from service.store.blob_table import BlobTable
from service.store.database import now, read, to_json, write, writes_so_far
from service.store.presets import Presets
from service.store.rows import Memory, StoredModel
from service.store.tables import (
    blobs,
    launch_rungs,
    measurements,
    models,
    plans,
    presets,
    tags,
    variants,
)

_NAMES_REMEMBERED = 10_000
_FEW = 500  # digests or ids in one query
_PLAN = msgspec.json.Decoder(LevelPlan)

Target = ModelRef | tuple[ModelKey, str]


class Catalog(BlobTable):
    """What the store holds, by name. Methods block on the database and may be called from any thread.

    Beside their own errors they raise Busy, and DiskFull when a change finds no room.
    """

    def __init__(self, engine: Engine) -> None:
        self.adapters = Adapters(engine)
        self.presets = Presets(engine)
        self._engine = engine
        self._memory = Memory()
        self._resolved: tuple[int | None, dict[str, Variant]] = (None, {})  # as of so many writes

    # --- variants ------------------------------------------------------------------------------------------------

    def add_variant(
        self, target: Target, made: MadeFile, lineage: Lineage, *, outside: Outside | None = None
    ) -> Variant:
        """Enter a committed blob as a variant of `target`: an import's reference, or (model, flavour).

        `outside`: the blob is this file, adopted where it is. The same file under the same name is the variant that is
        there. Raises LabelMismatch, InvalidName, and NameTaken when the name stands for another file.
        """
        quantization = made.facts.quantization
        if isinstance(target, ModelRef):
            naming.check_label(target, quantization)
            key, flavour = target.key, target.flavour
        else:
            key, flavour = target
        naming.check_canonical(key, flavour, quantization)
        digest = parse_digest(made.digest)
        with write(self._engine) as connection:
            changes.add_blob(connection, digest, made.size_bytes)
            if outside is not None:
                values = {"outside": to_json(outside), "corrupt": False, "verified_at": now()}
                connection.execute(update(blobs).where(blobs.c.digest == digest).values(**values))
            if made.plans:
                connection.execute(delete(plans).where(plans.c.digest == digest))
                planned = enumerate(map(to_json, made.plans))
                connection.execute(insert(plans), [{"digest": digest, "position": i, "plan": p} for i, p in planned])
            return changes.add_variant(connection, key, flavour, digest, made.facts, lineage)

    def resolve(self, name: str | ModelRef) -> Variant:
        """The variant a name means. Raises InvalidName, and ModelNotFound with the closest names."""
        writes = writes_so_far(self._engine)
        variant = self._resolve(name, naming.choose)
        if isinstance(name, str) and writes is not None:
            as_of, known = self._resolved
            if as_of != writes or len(known) >= _NAMES_REMEMBERED:
                known = {}
                self._resolved = (writes, known)
            known[name] = variant
        return variant

    def remembered(self, name: str) -> Variant | None:
        """What `resolve` gave for this name if nothing was written since. Unlike the rest, it never blocks."""
        as_of, known = self._resolved
        return known.get(name) if as_of is not None and as_of == writes_so_far(self._engine) else None

    def resolve_source(self, name: str | ModelRef) -> Variant:
        """The variant to make levels from: as `resolve`, but a bare name means the variant that has lost least."""
        return self._resolve(name, naming.choose_source)

    def _resolve(
        self, name: str | ModelRef, choose: Callable[[ModelRef, Sequence[Variant]], Variant | None]
    ) -> Variant:
        ref = parse_ref(name) if isinstance(name, str) else name
        with read(self._engine) as connection:
            variant = choose(ref, changes.of_model(connection, ref.key))
            if variant is None:
                raise changes.not_found(connection, ref)
        return variant

    @property
    def writes_so_far(self) -> int | None:
        """What was read since this last changed still holds; None where other processes write too. Never blocks."""
        return writes_so_far(self._engine)

    def variant(self, variant_id: int) -> Variant:
        """The variant with that id. Raises ModelNotFound."""
        with read(self._engine) as connection:
            return changes.by_id(connection, variant_id)

    def variants(self, model: str | None = None) -> list[Variant]:
        """All variants, or those of one model (a tag in its name does not count), by model, oldest first."""
        return [variant for stored in self.models(model) for variant in stored.variants]

    def models(self, model: str | None = None) -> list[StoredModel]:
        """Every model with its variants, or that one (a tag in its name does not count), by name.

        A model is the same object as before for as long as nothing was written that lists show of it.
        """
        key = None if model is None else parse_ref(model).key
        with read(self._engine) as connection:
            if key is None:
                return self._memory.fetch_all(connection)
            found = self._memory.fetch(connection, key.folded)
        return [] if found is None else [found]

    def aliases(self, variant: Variant) -> list[str]:
        """Every name but the canonical one that resolves to `variant`, shortest first."""
        return self.aliases_of([variant])[variant.id]

    def aliases_of(self, listed: Sequence[Variant]) -> dict[int, list[str]]:
        """`aliases` for a list, in one query: variant id -> names; none for a variant that is gone."""
        found: dict[int, list[str]] = {variant.id: [] for variant in listed}
        # The names of one variant depend on all variants of its model.
        keys = {variant.model.folded: variant.model.display for variant in listed}
        for stored in self.models(next(iter(keys.values())) if len(keys) == 1 else None):
            names = stored.aliases
            found.update((variant_id, list(names[variant_id])) for variant_id in names.keys() & found.keys())
        return found

    def copy(self, source: Variant, destination: ModelRef) -> Variant:
        """Give `source` a second name, without a second file: see `naming.plan_copy`. A tag that exists moves.

        Raises LabelMismatch, InvalidName, ModelNotFound when the source is gone, and NameTaken when the
        destination stands for another file.
        """
        plan = naming.plan_copy(source, destination)
        if plan.flavour is not None:
            naming.check_canonical(destination.key, plan.flavour, source.quantization)
        with write(self._engine) as connection:
            target = changes.by_id(connection, source.id)
            if plan.flavour is not None:
                key, digest = destination.key, target.digest
                target = changes.add_variant(connection, key, plan.flavour, digest, target.facts, target.lineage)
            if plan.word is not None:
                changes.set_tag(connection, target, plan.word)
            return changes.by_id(connection, target.id)

    def delete(self, ref: ModelRef) -> list[Variant]:
        """Remove what `naming.plan_delete` says; returns the variants removed, none when only a tag went.

        Blobs that no variant needs any more lose their row; their files go with the next sweep. Raises
        ModelNotFound, Pinned, and Conflict for a name that reaches a variant by rule alone.
        """
        with write(self._engine) as connection:
            found = changes.of_model(connection, ref.key)
            plan = naming.plan_delete(ref, found)
            if plan is None:
                raise changes.not_found(connection, ref)
            if plan.word is not None:
                owner = select(models.c.id).where(models.c.folded == ref.key.folded).scalar_subquery()
                connection.execute(delete(tags).where(tags.c.model_id == owner, tags.c.word_folded == plan.word))
                connection.execute(
                    delete(presets).where(presets.c.model_id == owner, presets.c.word_folded == plan.word)
                )
                return []
            changes.remove(connection, plan.variants)
            return list(plan.variants)

    def delete_variant(self, variant: Variant) -> None:
        """As `delete`, for this very variant. Raises ModelNotFound, Pinned."""
        with write(self._engine) as connection:
            changes.remove(connection, [changes.by_id(connection, variant.id)])

    def pin(self, variant: Variant, pinned: bool) -> Variant:
        """Have the variant kept from being deleted, or no longer. Raises ModelNotFound."""
        with write(self._engine) as connection:
            connection.execute(update(variants).where(variants.c.id == variant.id).values(pinned=pinned))
            return changes.by_id(connection, variant.id)

    # --- figures -------------------------------------------------------------------------------------------------

    def note_use(self, digest: str) -> None:
        """The variants of this blob are used now."""
        with write(self._engine) as connection:
            connection.execute(update(variants).where(variants.c.digest == digest).values(last_used_at=now()))

    def last_used(self) -> dict[int, str]:
        """When a worker last held each variant, by id; those that none has are left out."""
        query = select(variants.c.id, variants.c.last_used_at).where(variants.c.last_used_at.is_not(None))
        with read(self._engine) as connection:
            return {row.id: row.last_used_at for row in connection.execute(query)}

    def plans(self, digest: str) -> list[LevelPlan]:
        """What could be made from that file, in the order planned; empty when nothing was planned."""
        return self.plans_of([digest])[digest]

    def plans_of(self, digests: Collection[str]) -> dict[str, list[LevelPlan]]:
        """`plans` for a list, in few queries."""
        found: dict[str, list[LevelPlan]] = {digest: [] for digest in digests}
        query = select(plans.c.digest, plans.c.plan).order_by(plans.c.digest, plans.c.position)
        wanted = list(found)
        with read(self._engine) as connection:
            # Every file has its plans, and few of them are asked for.
            for start in range(0, len(wanted), _FEW):
                some = plans.c.digest.in_(wanted[start : start + _FEW])
                for digest, plan in connection.execute(query.where(some)):
                    found[digest].append(_PLAN.decode(plan))
        return found

    def add_measurement(self, variant_id: int, name: str, value: float, unit: str) -> None:
        """Note a figure measured here; it takes the place of an older one of that name. Raises ModelNotFound."""
        with write(self._engine) as connection:
            changes.by_id(connection, variant_id)
            same = (measurements.c.variant_id == variant_id, measurements.c.name == name)
            connection.execute(delete(measurements).where(*same))
            row = {"variant_id": variant_id, "name": name, "value": value, "unit": unit, "created_at": now()}
            connection.execute(insert(measurements), row)

    def measurements(self, variant_id: int) -> list[Measurement]:
        """The figures of one variant, by name."""
        return self.measurements_of([variant_id])[variant_id]

    def measurements_of(self, variant_ids: Iterable[int]) -> dict[int, list[Measurement]]:
        """`measurements` for a list, in one query: variant id -> figures."""
        wanted = set(variant_ids)
        columns = (measurements.c.name, measurements.c.value, measurements.c.unit, measurements.c.created_at)
        query = select(measurements.c.variant_id, *columns).order_by(measurements.c.name)
        if len(wanted) <= _FEW:
            query = query.where(measurements.c.variant_id.in_(wanted))
        found: dict[int, list[Measurement]] = {variant_id: [] for variant_id in wanted}
        with read(self._engine) as connection:
            for variant_id, name, value, unit, created_at in connection.execute(query):
                if variant_id in found:
                    found[variant_id].append(Measurement(name, value, unit, created_at))
        return found

    def rung(self, machine: str, digest: str) -> str | None:
        """The rung of the launch ladder that last worked for that file on that machine."""
        at = (launch_rungs.c.machine == machine, launch_rungs.c.digest == digest)
        with read(self._engine) as connection:
            return connection.execute(select(launch_rungs.c.rung).where(*at)).scalar_one_or_none()

    def set_rung(self, machine: str, digest: str, rung: str) -> None:
        """Remember that rung. Does nothing for a blob that has been deleted meanwhile."""
        with write(self._engine) as connection:
            at = (launch_rungs.c.machine == machine, launch_rungs.c.digest == digest)
            connection.execute(delete(launch_rungs).where(*at))
            if connection.execute(select(blobs.c.digest).where(blobs.c.digest == digest)).first() is not None:
                row = {"machine": machine, "digest": digest, "rung": rung, "updated_at": now()}
                connection.execute(insert(launch_rungs), row)
