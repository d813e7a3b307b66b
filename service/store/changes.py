"""What a change of the catalogue writes and looks up inside one transaction. Server process only.

`Catalog` and `Laboratory` open the transaction; the functions here see only its connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, insert, or_, select

from service.domain.catalog import FileFacts, Lineage, Variant
from service.domain.errors import InternalError, ModelNotFound, NameTaken, Pinned
from service.domain.jobs import JobStatus
from service.domain.names import ModelKey, ModelRef, closest
from service.store.database import now, to_json
from service.store.rows import fetch
from service.store.tables import adapters, blobs, datasets, importance_matrices, jobs, models, presets, tags, variants

IN_USE = or_(
    exists().where(variants.c.digest == blobs.c.digest),
    exists().where(adapters.c.digest == blobs.c.digest),
    exists().where(datasets.c.digest == blobs.c.digest),
    exists().where(importance_matrices.c.digest == blobs.c.digest),
)
"""Whether something is made of the blob of a row of `blobs`."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)
_CLOSEST_AMONG = 1000
_SHOWN = 5


def of_model(connection: Connection, key: ModelKey) -> list[Variant]:
    """The variants of one model, oldest first."""
    return fetch(connection, models.c.folded == key.folded)


def by_id(connection: Connection, variant_id: int) -> Variant:
    """The variant with that id. Raises ModelNotFound."""
    found = fetch(connection, variants.c.id == variant_id)
    if not found:
        raise ModelNotFound("This variant has been deleted; list the variants for what is there.")
    return found[0]


def needed_by_jobs(connection: Connection) -> frozenset[str]:
    """The blobs that waiting and running jobs name, as of this transaction."""
    specs = connection.scalars(select(jobs.c.spec).where(jobs.c.status.in_(_ACTIVE)))
    return frozenset(digest for spec in specs for digest in _DIGEST.findall(spec))


def add_blob(connection: Connection, digest: str, size_bytes: int) -> None:
    """Enter a committed blob, unless it is known."""
    known = connection.execute(select(blobs.c.size_bytes).where(blobs.c.digest == digest)).scalar_one_or_none()
    if known is None:
        row = {"digest": digest, "size_bytes": size_bytes, "corrupt": False, "created_at": now()}
        connection.execute(insert(blobs), row)
    elif known != size_bytes:
        raise InternalError("One digest with two sizes; verify the blobs of this store.")


def add_variant(
    connection: Connection, key: ModelKey, flavour: str, digest: str, facts: FileFacts, lineage: Lineage
) -> Variant:
    """Enter a variant; the same file under the same name is the one that is there. Raises NameTaken."""
    siblings = of_model(connection, key)
    for sibling in siblings:
        if sibling.flavour.lower() == flavour.lower():
            flavour = sibling.flavour  # the spelling that came first
            if sibling.quantization == facts.quantization:
                if sibling.digest == digest:
                    return sibling
                raise NameTaken(
                    f"{sibling.name} is another file; delete it first, or copy or import to another name.", param="name"
                )
    model_id = connection.execute(select(models.c.id).where(models.c.folded == key.folded)).scalar_one_or_none()
    if model_id is None:
        row = {"folded": key.folded, "host": key.host, "namespace": key.namespace, "model": key.model}
        statement = insert(models).values(**row, created_at=now()).returning(models.c.id)
        model_id = connection.execute(statement).scalar_one()
    values = {
        "model_id": model_id,
        "flavour": flavour,
        "flavour_folded": flavour.lower(),
        "quantization": facts.quantization,
        "digest": digest,
        "facts": to_json(facts),
        "lineage": to_json(lineage),
        "created_at": now(),
    }
    variant_id = connection.execute(insert(variants).values(**values).returning(variants.c.id)).scalar_one()
    return by_id(connection, variant_id)


def remove(connection: Connection, gone: Sequence[Variant]) -> None:
    """Remove variants, models that have none left, and blobs that nothing needs any more. Raises Pinned."""
    pinned = [variant.name for variant in gone if variant.pinned]
    if pinned:
        raise Pinned(f"{', '.join(pinned[:_SHOWN])} is pinned; unpin it first (DELETE /v1/variants/{pinned[0]}/pin).")
    digests = {variant.digest for variant in gone}
    connection.execute(delete(variants).where(variants.c.id.in_([variant.id for variant in gone])))
    folded = {variant.model.folded for variant in gone}
    childless = (models.c.folded.in_(folded), ~exists().where(variants.c.model_id == models.c.id))
    with_adapters = select(adapters.c.digest).join(models, adapters.c.model_id == models.c.id)
    digests.update(connection.scalars(with_adapters.where(*childless)))
    connection.execute(delete(models).where(*childless))
    connection.execute(delete(blobs).where(blobs.c.digest.in_(digests), ~IN_USE))


def set_tag(connection: Connection, target: Variant, word: str) -> None:
    """Let the free tag `word` point to `target`, from wherever it pointed. Raises NameTaken."""
    siblings = of_model(connection, target.model)
    for sibling in siblings:
        if sibling.tag.lower() == word.lower():
            raise NameTaken(f"{sibling.name} is another file; delete it first, or copy to another name.", param="name")
    model_id = connection.execute(select(variants.c.model_id).where(variants.c.id == target.id)).scalar_one()
    connection.execute(delete(tags).where(tags.c.model_id == model_id, tags.c.word_folded == word.lower()))
    connection.execute(delete(presets).where(presets.c.model_id == model_id, presets.c.word_folded == word.lower()))
    row = {"model_id": model_id, "word": word, "word_folded": word.lower(), "variant_id": target.id}
    connection.execute(insert(tags), {**row, "created_at": now()})


def not_found(connection: Connection, ref: ModelRef) -> ModelNotFound:
    """The error for a name that means nothing, with the closest names."""
    siblings = of_model(connection, ref.key)
    if siblings:
        names = [name for v in siblings for name in (v.name, *(f"{v.model.display}:{tag}" for tag in v.tags))]
        near = closest(ref.display, names) or names[:5]
    else:
        columns = (models.c.host, models.c.namespace, models.c.model)
        newest = connection.execute(select(*columns).order_by(models.c.id.desc()).limit(_CLOSEST_AMONG)).all()
        near = closest(ref.key.display, [ModelKey(*row).display for row in newest])
    remedy = f"the closest names are {', '.join(near)}" if near else "import it first, or list what is there"
    return ModelNotFound(f"No model {ref.display!r}; {remedy}.", param="model")
