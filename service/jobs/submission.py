"""A request becomes a queued job: checked against the store first, so that it fails now if it must fail.

Server process; blocks on disk and database, so the runner calls it in a thread.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from service.domain import recipes
from service.domain.addresses import parse_address
from service.domain.errors import BlobNotFound, InvalidParameter, QuantizationNotApplicable
from service.domain.jobs import (
    AdapterSpec,
    Adoption,
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
from service.jobs.assignments.bundle_entries import check_name as bundle_name
from service.jobs.assignments.imports import MAX_FILES
from service.jobs.assignments.quantize import plans_of
from service.jobs.queue import JobQueue
from service.jobs.server_paths import MODEL_PATHS, check_readable
from service.store.catalog import Catalog
from service.store.stores import Stores

_FLOATS = ("F32", "F16", "BF16")
# A file, or one that lies in a folder beside it ("1_Pooling/config.json"): names to look up, never to open.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][\w.+ -]{0,200}(/[A-Za-z0-9_][\w.+ -]{0,100})?", re.ASCII)


def canonical(spec: JobSpec, stores: Stores) -> JobSpec:
    """The spec with canonical names and labels, its options checked.

    Raises InvalidName, ModelNotFound, UnknownQuantization, InvalidParameter.
    """
    catalog = stores.catalog
    match spec:
        case ImportSpec():
            return _canonical_import(spec)
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
            source = None if spec.source is None else parse_address(spec.source).display
            return replace(spec, base=_canonical_file(spec.base, catalog), source=source)
        case VerifySpec():
            names = dict.fromkeys(_canonical_model(name, catalog) for name in spec.models)
            return replace(spec, models=tuple(names), digests=tuple(map(parse_digest, dict.fromkeys(spec.digests))))
        case PullSpec():
            address = parse_address(spec.source)
            ref = parse_ref(spec.name or address.name)
            check_not_reserved(ref.flavour)
            return replace(spec, name=ref.display, source=address.display)
        case BundleSpec():
            if (spec.path is None) == (spec.digest is None):
                raise InvalidParameter("Give either the path of a bundle on the server or the digest of an upload.")
            return replace(spec, name=None if spec.name is None else bundle_name(spec.name))


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


def enqueue(spec: JobSpec, queue: JobQueue, bench: Bench) -> tuple[Job, bool]:
    """Queue a job for a canonical spec, or find the active one that does the same: (job, whether it is new).

    Raises what `assign` raises, and QueueFull.
    """
    active = queue.find_active(spec)
    if active is not None:
        return active, False
    if isinstance(spec, ImportSpec):
        _check_import(spec, bench.stores)
    return queue.enqueue(spec, assign(spec, bench).steps)


def _canonical_file(file: StoredFile, catalog: Catalog) -> StoredFile:
    return replace(file, name=catalog.resolve(file.name).name)


def _canonical_model(name: str, catalog: Catalog) -> str:
    """A name without a tag means all variants of its model. Raises ModelNotFound."""
    if parse_ref(name).tag is None and (variants := catalog.variants(name)):
        return variants[0].model.display
    return catalog.resolve(name).name


def _canonical_import(spec: ImportSpec) -> ImportSpec:
    if [spec.path is None, spec.digest is None, not spec.files].count(False) != 1:
        raise InvalidParameter("Give either a path on the server, the digest of an upload, or several files.")
    if spec.convert_to not in (None, *_FLOATS):
        raise InvalidParameter(f"Convert to one of {', '.join(_FLOATS)}.", param="convert_to")
    ref = parse_ref(spec.name)
    check_not_reserved(ref.flavour)
    spec = replace(spec, name=ref.display)
    if spec.adopt is not Adoption.COPY:
        if spec.path is None:
            raise InvalidParameter("Only a file on the server is adopted; send its path.", param="adopt")
        spec = replace(spec, path=os.path.realpath(spec.path))
    if spec.convert_to is None and ref.label in _FLOATS:
        spec = replace(spec, convert_to=ref.label)
    if len(spec.files) == 1:
        return replace(spec, digest=spec.files[0].digest, files=())
    names = [file.name for file in spec.files]
    if len(names) > MAX_FILES or len(set(names)) < len(names) or not all(map(_FILE_NAME.fullmatch, names)):
        raise InvalidParameter(
            f"files: give each of at most {MAX_FILES} files once, by the name it has in its checkpoint.", param="files"
        )
    return replace(spec, files=tuple(sorted(spec.files, key=lambda file: file.name)))


def _check_import(spec: ImportSpec, stores: Stores) -> None:
    if spec.path is not None:
        check_readable(Path(spec.path), MODEL_PATHS)
    for digest in [spec.digest] if spec.digest is not None else [file.digest for file in spec.files]:
        if not stores.blobs.has(parse_digest(digest)):
            raise BlobNotFound(
                "There is no upload with that digest; send it first.", param="files" if spec.files else "digest"
            )
