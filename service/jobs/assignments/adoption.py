"""A file adopted where it lies: what the store does instead of taking in a copy. Server process."""

from __future__ import annotations

from pathlib import Path

from service.domain.catalog import Outside
from service.domain.errors import InvalidParameter
from service.domain.jobs import Adoption, ImportSpec, MadeFile
from service.jobs.assignments.bench import Bench
from service.store.outside import looks_of


class AdoptedFile:
    """The file of an import that is linked or referred to, from before its bytes are read until they are entered."""

    def __init__(self, spec: ImportSpec, bench: Bench) -> None:
        """Raises InvalidParameter for what is no file, or cannot be linked into the store."""
        assert spec.path is not None, "only a path is adopted"
        self._bench = bench
        self._adoption = spec.adopt
        self._path = Path(spec.path)
        self._before = looks_of(self._path)
        if self._before is None:
            raise InvalidParameter(
                f"{self._path.name[:80]!r} is no file, and only single GGUF files are adopted; import it as a copy.",
                param="adopt",
            )
        if spec.adopt is Adoption.LINK and self._path.stat().st_dev != bench.stores.blobs.root.stat().st_dev:
            raise InvalidParameter(
                "The file is on another file system than the store, where no link leads. Adopt it with reference, or "
                "copy it.",
                param="adopt",
            )

    def take(self, temp: Path, file: MadeFile) -> Outside | None:
        """Have the blob: linked, or referred to; where its bytes lie then, None: in the store.

        Raises InvalidParameter when the file has changed since it was read.
        """
        if self._adoption is Adoption.LINK:
            self._bench.commit(temp, file.digest, file.size_bytes, linked=True)
            return None
        blobs = self._bench.stores.blobs
        if blobs.is_inside(file.digest):
            return None  # these very bytes are in the store
        now_looks = looks_of(self._path)
        if now_looks is None or now_looks != self._before or now_looks.size_bytes != file.size_bytes:
            raise InvalidParameter(
                f"{self._path.name[:80]!r} changed while it was read; adopt it when it is complete.", param="path"
            )
        blobs.refer(file.digest, now_looks)
        blobs.drop_quarantined(file.digest)
        return now_looks
