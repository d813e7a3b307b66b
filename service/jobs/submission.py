"""A request becomes a queued job: checked against the store first, so that it fails now if it must fail.

Server process; blocks on disk and database, so the runner calls it in a thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from service.domain.errors import BlobNotFound, InvalidParameter
from service.domain.jobs import ImportSpec, Job, QuantizeSpec
from service.domain.names import parse_digest, parse_ref
from service.jobs.admission import canonical_levels
from service.jobs.assignments import admit_quantize, import_steps, quantize_steps
from service.jobs.queue import JobQueue
from service.store.blobs import BlobStore
from service.store.catalog import Catalog


def enqueue_import(spec: ImportSpec, queue: JobQueue, blobs: BlobStore) -> Job:
    """As `JobRunner.submit_import`."""
    spec = replace(spec, name=parse_ref(spec.name).display)
    if (spec.path is None) == (spec.digest is None):
        raise InvalidParameter("Give either the path of a file on the server or the digest of an upload.")
    active = queue.find_active(spec)
    if active is not None:
        return active
    if spec.path is not None:
        blobs.check_space(_readable_size(Path(spec.path)))
    elif spec.digest is not None and not blobs.has(parse_digest(spec.digest)):
        raise BlobNotFound("There is no upload with that digest; send it first.", param="digest")
    return queue.enqueue(spec, import_steps(spec))[0]


def enqueue_quantize(spec: QuantizeSpec, queue: JobQueue, catalog: Catalog, blobs: BlobStore) -> Job:
    """As `JobRunner.submit_quantize`."""
    name = catalog.resolve(spec.source_name).name
    spec = replace(spec, source_name=name, levels=canonical_levels(spec.levels))
    active = queue.find_active(spec)
    if active is not None:
        return active
    _, levels = admit_quantize(spec, catalog, blobs)
    return queue.enqueue(spec, quantize_steps(levels))[0]


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
