"""Blobs and their rows looked after together: what becomes of one whose bytes are right, wrong or gone. Server process.

    intact ──bytes read, and wrong or gone──> corrupt, its file in quarantine ──right bytes come in──> intact
       ^                                         └──read again, and right after all: moved back──────────┘

A change writes the row first, and only then moves the file: whatever is in its place is not served while the row says
that it is corrupt.
"""

from __future__ import annotations

from pathlib import Path

import structlog

from service.domain.errors import BlobCorrupt, BlobNotFound
from service.store.blobs import BlobStore
from service.store.catalog import Catalog
from service.store.files import matches
from service.store.outside import looks_of

_log = structlog.get_logger("care")


def start(catalog: Catalog, blobs: BlobStore) -> None:
    """Tell the blob store which blobs are files elsewhere. Call it once, after the start of both."""
    for digest, file in catalog.outside().items():
        if blobs.is_inside(digest):
            catalog.set_outside(digest, None)  # its bytes have come into the store since
        else:
            blobs.refer(digest, file)


def found(catalog: Catalog, blobs: BlobStore, digest: str, *, intact: bool) -> bool:
    """The bytes of the blob were read: note what they were found to be. Whether its state has changed by that."""
    return _found_intact(catalog, blobs, digest) if intact else condemn(catalog, blobs, digest)


def condemn(catalog: Catalog, blobs: BlobStore, digest: str) -> bool:
    """The blob's bytes are wrong or gone: nothing is to serve them from now on. Whether that is news.

    A file of the store goes to the quarantine, one outside stays as it is. Raises BlobNotFound for one without a row.
    """
    known = catalog.blob(digest)
    catalog.mark_corrupt(digest, True)
    if blobs.is_inside(digest) or blobs.path(digest).is_symlink():
        blobs.set_aside(digest)
    is_news = known is None or not known.corrupt
    if is_news:
        _log.error("a blob is damaged", digest=digest)
    return is_news


def mended(catalog: Catalog, blobs: BlobStore, digest: str) -> None:
    """The right bytes of a blob have been committed to the store."""
    catalog.mark_corrupt(digest, False)
    catalog.set_outside(digest, None)
    blobs.drop_quarantined(digest)


def verify(catalog: Catalog, blobs: BlobStore, digest: str) -> tuple[bool, bool]:
    """Read the blob's bytes, wherever they lie, and note what they are: (intact, whether that has changed)."""
    path = blobs.where(digest)
    intact = path is not None and matches(path, digest)
    return intact, found(catalog, blobs, digest, intact=intact)


def loadable(catalog: Catalog, blobs: BlobStore, digest: str) -> Path:
    """The blob's file, looked at before it is loaded: it is there, as long as it was, and one outside is untouched.

    Raises BlobCorrupt, and the blob is then marked as such; its bytes are not read for this.
    """
    known = catalog.blob(digest)
    if known is None:
        raise BlobNotFound("The file of this variant has just been deleted; list the variants for what is there.")
    if known.corrupt:
        raise BlobCorrupt("The file is damaged. Repair it (POST /v1/variants/{ref}/repair), or bring it again.")
    try:
        if blobs.size(digest) == known.size_bytes:
            return blobs.path(digest)
    except BlobNotFound:
        pass
    condemn(catalog, blobs, digest)
    where = "The file that was adopted has been changed, moved or deleted" if known.outside else "The file is damaged"
    raise BlobCorrupt(f"{where}. Repair it (POST /v1/variants/{{ref}}/repair), or bring the same bytes again.")


def _found_intact(catalog: Catalog, blobs: BlobStore, digest: str) -> bool:
    known = catalog.blob(digest)
    if known is None:
        return False
    restored = blobs.restore(digest)
    adopted = blobs.outside.get(digest)
    if adopted is not None and not blobs.is_inside(digest):
        now_looks = looks_of(Path(adopted.path))
        if now_looks is not None and now_looks != adopted:
            # The same bytes under another time: written back, or touched.
            catalog.set_outside(digest, now_looks)
            blobs.refer(digest, now_looks)
    if restored or known.corrupt:
        _log.info("a blob is whole again", digest=digest)
    catalog.mark_intact([digest])
    if blobs.is_inside(digest):
        blobs.drop_quarantined(digest)
    return known.corrupt
