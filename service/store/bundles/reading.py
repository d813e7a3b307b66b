"""The variants that an archive in OCI's image layout holds, ours or others'. Reads its texts, and no model.

Every text is bounded, is checked against its digest and must have the shape that it should; what it says of a variant
is believed as little as `domain.bundles` says. Blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from service.domain.bundles import VERSION, BundledVariant
from service.domain.errors import DigestMismatch, InvalidModel, InvalidName
from service.domain.names import parse_digest, parse_ref
from service.store.bundles.archive import INDEX, LAYOUT, Archive
from service.store.bundles.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    REF_NAME,
    Descriptor,
    Index,
    Layout,
    Manifest,
    blob_name,
    digest_of,
)

T = TypeVar("T")

MAX_VARIANTS = 1000
_TEXT_BYTES = 8 << 20
_TEXTS_BYTES = 64 << 20  # of all of them
_MAX_DEPTH = 3  # an index in an index in an index


@dataclass(frozen=True, slots=True)
class BundledFile:
    """A GGUF file in an archive: where, and what is said of it. `about` None: others have made the bundle.

    `tag` is what it is called there, as a tag of ours; "" when that could be none.
    """

    digest: str
    size_bytes: int
    offset: int
    tag: str = ""
    about: BundledVariant | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an archive holds, and how the archive looked."""

    files: tuple[BundledFile, ...]
    archive_bytes: int
    modified_ns: int


class _Config(msgspec.Struct, frozen=True):
    quantry: msgspec.Raw = msgspec.Raw(b"null")


def read_bundle(path: str) -> Bundle:
    """The bundle in the file `path`. Raises InvalidParameter, InvalidModel, DigestMismatch."""
    with Archive(path) as archive:
        files = _Reader(archive).files()
        if not files:
            raise InvalidModel("The archive holds no GGUF file: no manifest in it has a layer of that kind.")
        return Bundle(files, archive.size_bytes, archive.modified_ns)


class _Reader:
    """Reads the texts of one archive, and no more of them than `_TEXTS_BYTES`: many may name the same large one."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._left_bytes = _TEXTS_BYTES

    def files(self) -> tuple[BundledFile, ...]:
        layout = _decoded(self._read(LAYOUT), Layout, LAYOUT)
        if not layout.imageLayoutVersion.startswith("1."):
            raise InvalidModel("The archive has another version of the OCI image layout; make it anew as 1.0.0.")
        tags: dict[str, list[str]] = {}
        manifests: dict[str, Descriptor] = {}
        for descriptor in self._manifests(_decoded(self._read(INDEX), Index, INDEX), _MAX_DEPTH):
            manifests.setdefault(descriptor.digest, descriptor)
            tags.setdefault(descriptor.digest, []).append(descriptor.annotation(REF_NAME))
            if len(manifests) > MAX_VARIANTS:
                raise InvalidModel(f"The archive lists more than {MAX_VARIANTS} manifests; bring fewer at a time.")
        found = [self._file(descriptor, tags[digest]) for digest, descriptor in manifests.items()]
        return tuple(file for file in found if file is not None)

    def _manifests(self, index: Index, depth: int) -> Iterator[Descriptor]:
        for descriptor in index.manifests or ():
            if descriptor.mediaType in INDEX_TYPES:
                if depth == 1:
                    raise InvalidModel("The archive has indexes within indexes; make it anew with one.")
                yield from self._manifests(_decoded(self._text(descriptor), Index, "an index"), depth - 1)
            elif descriptor.mediaType in MANIFEST_TYPES:
                yield descriptor

    def _file(self, descriptor: Descriptor, names: list[str]) -> BundledFile | None:
        """The model of a manifest; None for one that has another kind of artifact."""
        manifest = _decoded(self._text(descriptor), Manifest, "a manifest")
        models = [layer for layer in manifest.layers or () if layer.is_gguf]
        if not models:
            return None
        if len(models) > 1:
            raise InvalidModel("A model in the archive is split into several files; merge them into one GGUF file.")
        layer = models[0]
        place = self._archive.members.get(blob_name(_checked_digest(layer)))
        if place is None:
            raise InvalidModel(f"The archive has no blob {layer.digest}, which it lists; get it again.")
        if place.size_bytes != layer.size:
            raise InvalidModel(f"The blob {layer.digest} has another size than the archive lists; get it again.")
        tag = next((tag for tag in map(_tag, names) if tag), "")
        return BundledFile(layer.digest, layer.size, place.offset, tag, self._about(manifest.config))

    def _about(self, config: Descriptor) -> BundledVariant | None:
        """What quantry has written into a config; None for one of others', whatever that is."""
        if not config.mediaType.endswith("json"):
            return None
        raw = bytes(_decoded(self._text(config), _Config, "a config").quantry)
        if raw == b"null":
            return None
        about = _decoded(raw, BundledVariant, "a config of quantry's")
        if about.version != VERSION:
            raise InvalidModel("The bundle was made by another version of quantry; export it with this one.")
        return about

    def _text(self, descriptor: Descriptor) -> bytes:
        """The bytes of a small blob, when they have its size and digest."""
        text = self._read(blob_name(_checked_digest(descriptor)))
        if len(text) != descriptor.size or digest_of(text) != descriptor.digest:
            raise DigestMismatch(f"The bytes of {descriptor.digest} in the archive are others; get it again.")
        return text

    def _read(self, name: str) -> bytes:
        text = self._archive.read(name, min(_TEXT_BYTES, self._left_bytes))
        self._left_bytes -= len(text)
        return text


def _checked_digest(descriptor: Descriptor) -> str:
    try:
        return parse_digest(descriptor.digest)
    except InvalidName:
        raise InvalidModel("The archive names a blob by something that is no sha256 digest; make it anew.") from None


def _tag(name: str) -> str:
    """The tag in a reference as registries write it; "" when it cannot be one of ours."""
    tag = name.rpartition("/")[2].rpartition(":")[2]
    try:
        parse_ref(f"x:{tag}")
    except InvalidName:
        return ""
    return tag


def _decoded(text: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise InvalidModel(f"What the archive has as {what} is none; make it anew.") from None
