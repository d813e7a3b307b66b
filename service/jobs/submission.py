"""A request becomes a queued job: checked against the store first, so that it fails now if it must fail.

Server process; blocks on disk and database, so the runner calls it in a thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from service.domain import recipes
from service.domain.errors import BlobNotFound, InvalidParameter
from service.domain.jobs import (
    BudgetSpec,
    CalibrateSpec,
    EvaluateSpec,
    ImportSpec,
    Job,
    JobSpec,
    QuantizeSpec,
    RebuildSpec,
    StoredFile,
)
from service.domain.names import parse_digest, parse_ref
from service.jobs.admission import canonical_levels
from service.jobs.assignments import assign
from service.jobs.assignments.bench import Bench
from service.jobs.queue import JobQueue
from service.store.catalog import Catalog
from service.store.stores import Stores


def canonical(spec: JobSpec, stores: Stores) -> JobSpec:
    """The spec with canonical names and labels, its options checked.

    Raises InvalidName, ModelNotFound, UnknownQuantization, InvalidParameter.
    """
    catalog = stores.catalog
    match spec:
        case ImportSpec():
            if (spec.path is None) == (spec.digest is None):
                raise InvalidParameter("Give either the path of a file on the server or the digest of an upload.")
            return replace(spec, name=parse_ref(spec.name).display)
        case QuantizeSpec():
            return replace(
                spec,
                source_name=catalog.resolve(spec.source_name).name,
                levels=canonical_levels(spec.levels),
                recipe=recipes.check(spec.recipe),
            )
        case BudgetSpec():
            name = catalog.resolve(spec.source_name).name
            return replace(spec, source_name=name, recipe=recipes.check(spec.recipe))
        case CalibrateSpec():
            return replace(spec, source_name=catalog.resolve(spec.source_name).name)
        case EvaluateSpec():
            base = None if spec.base is None else _canonical_file(spec.base, catalog)
            files = tuple(dict.fromkeys(_canonical_file(file, catalog) for file in spec.variants))
            return replace(spec, variants=files, base=base)
        case RebuildSpec():
            return replace(spec, variant=_canonical_file(spec.variant, catalog))


def enqueue(spec: JobSpec, queue: JobQueue, bench: Bench) -> Job:
    """Queue a job for a canonical spec, or find the active one that does the same.

    Raises what `assign` raises, and QueueFull.
    """
    active = queue.find_active(spec)
    if active is not None:
        return active
    if isinstance(spec, ImportSpec):
        _check_import(spec, bench.stores)
    return queue.enqueue(spec, assign(spec, bench).steps)[0]


def _canonical_file(file: StoredFile, catalog: Catalog) -> StoredFile:
    return replace(file, name=catalog.resolve(file.name).name)


def _check_import(spec: ImportSpec, stores: Stores) -> None:
    if spec.path is not None:
        stores.blobs.check_space(_readable_size(Path(spec.path)))
    elif spec.digest is not None and not stores.blobs.has(parse_digest(spec.digest)):
        raise BlobNotFound("There is no upload with that digest; send it first.", param="digest")


def _readable_size(path: Path) -> int:
    """Bytes of a file to import. One message for all that may be wrong: it tells nothing of what lies on the server."""
    try:
        status = path.stat()
        if path.is_absolute() and stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
            return status.st_size
    except (OSError, ValueError):
        pass
    raise InvalidParameter(
        f"{path.name[:80]!r} is no file that the server can read; give the absolute path of a .gguf file there, or "
        "upload it.",
        param="path",
    )
