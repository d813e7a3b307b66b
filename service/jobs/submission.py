"""A request becomes a queued job: checked against the store first, so that it fails now if it must fail.

Server process; blocks on disk and database, so the runner calls it in a thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from service.domain import recipes
from service.domain.errors import BlobNotFound, InvalidParameter, QuantizationNotApplicable
from service.domain.jobs import (
    AdapterSpec,
    BudgetSpec,
    BundleSpec,
    CalibrateSpec,
    EvaluateSpec,
    ImportSpec,
    Job,
    JobSpec,
    PullSpec,
    QuantizeSpec,
    RebuildSpec,
    StoredFile,
    VerifySpec,
)
from service.domain.names import check_not_reserved, parse_digest, parse_ref
from service.domain.steps_back import LADDER, applicable, downwards
from service.jobs.admission import canonical_levels, has_importance
from service.jobs.assignments import assign
from service.jobs.assignments.adapter import check_sources
from service.jobs.assignments.bench import Bench
from service.jobs.assignments.quantize import plans_of
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
            ref = parse_ref(spec.name)
            check_not_reserved(ref.flavour)
            return replace(spec, name=ref.display)
        case QuantizeSpec():
            if spec.until is not None and (spec.evaluate is None or spec.evaluate.text is None):
                raise InvalidParameter("A bound needs a text to measure on; name one in evaluate.", param="evaluate")
            return replace(
                spec,
                source_name=catalog.resolve(spec.source_name).name,
                levels=() if spec.until is not None and not spec.levels else canonical_levels(spec.levels),
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
        case AdapterSpec():
            check_sources(spec)
            return replace(spec, base=_canonical_file(spec.base, catalog))
        case PullSpec() | BundleSpec() | VerifySpec():
            return spec


def in_order(spec: QuantizeSpec, bench: Bench) -> QuantizeSpec:
    """A canonical spec with a bound, its levels largest first; where it names none, those of the ladder that apply.

    Raises ModelNotFound, and QuantizationNotApplicable where none applies.
    """
    source = bench.stores.catalog.resolve(spec.source_name)
    plans = plans_of(spec, source, spec.levels or LADDER, bench)
    levels = spec.levels
    if not levels:
        planned = [plans[label] for label in LADDER if label in plans]
        levels = applicable(planned, source.size_bytes, has_importance=has_importance(spec))
    if not levels:
        raise QuantizationNotApplicable(
            f"None of {', '.join(LADDER)} can be made of {source.name} and would be smaller; name the levels to try.",
            param="to",
        )
    return replace(spec, levels=downwards(levels, plans))


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
