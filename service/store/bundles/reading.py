"""What an archive in OCI's image layout holds of a model, ours or others'. Reads its texts, and none of its files.

Every text is bounded, is checked against its digest and must have the shape that it should; what it says of a variant
is believed as little as `domain.bundles` says. Blocks on the disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from service.domain.adapters import check_name
from service.domain.bundles import VERSION, BundledAdapter, BundledMatrix, BundledVariant
from service.domain.errors import DigestMismatch, InvalidModel, InvalidName, InvalidParameter
from service.domain.names import parse_digest, parse_ref
from service.domain.presets import check_preset
from service.store.bundles.archive import INDEX, LAYOUT, Archive
from service.store.bundles.oci import (
    ADAPTER_CONFIG_TYPE,
    ADAPTER_TYPE,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MATRIX_CONFIG_TYPE,
    MATRIX_TYPE,
    REF_NAME,
    Descriptor,
    Index,
    Layout,
    Manifest,
    blob_name,
    digest_of,
)

T = TypeVar("T")
M = TypeVar("M", BundledVariant, BundledAdapter, BundledMatrix)

MAX_FILES = 1000
MAX_PRESETS = 100  # of one variant
_MAX_PRESET_BYTES = 2 << 20  # of a variant's, together: what a body of `create` may be
_TEXT_BYTES = 8 << 20
_TEXTS_BYTES = 64 << 20  # of all of them
_MAX_DEPTH = 3  # an index in an index in an index


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in an archive: its digest, and the bytes that are to have it."""

    digest: str
    size_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class BundledFile(Stored):
    """A model's GGUF file, and what is said of it. `about` None: others have made the bundle.

    `tag` is what it is called there, as a tag of ours; "" when that could be none.
    """

    tag: str = ""
    about: BundledVariant | None = None


@dataclass(frozen=True, slots=True)
class AdapterFile(Stored):
    """The GGUF file of a LoRA adapter."""

    about: BundledAdapter


@dataclass(frozen=True, slots=True)
class MatrixFile(Stored):
    """The file of an importance matrix."""

    about: BundledMatrix


@dataclass(frozen=True, slots=True)
class Bundle:
    """What an archive holds, and how the archive looked."""

    files: tuple[BundledFile, ...]
    archive_bytes: int
    modified_ns: int
    adapters: tuple[AdapterFile, ...] = ()
    matrices: tuple[MatrixFile, ...] = ()

    @property
    def stored(self) -> tuple[Stored, ...]:
        """Every file of it."""
        return (*self.files, *self.matrices, *self.adapters)


class _Config(msgspec.Struct, frozen=True):
    quantry: msgspec.Raw = msgspec.Raw(b"null")


def read_bundle(path: str) -> Bundle:
    """The bundle in the file `path`. Raises InvalidParameter, InvalidModel, DigestMismatch."""
    with Archive(path) as archive:
        found = _Reader(archive).found()
        files = tuple(one for one in found if isinstance(one, BundledFile))
        if not files:
            raise InvalidModel("The archive holds no GGUF file: no manifest in it has a layer of that kind.")
        adapters = tuple(one for one in found if isinstance(one, AdapterFile))
        _check_names([adapter.about.name for adapter in adapters])
        matrices = tuple(one for one in found if isinstance(one, MatrixFile))
        return Bundle(files, archive.size_bytes, archive.modified_ns, adapters, matrices)


class _Reader:
    """Reads the texts of one archive, and no more of them than `_TEXTS_BYTES`: many may name the same large one."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._left_bytes = _TEXTS_BYTES

    def found(self) -> list[Stored]:
        """The files of all manifests that are of a kind that is known."""
        layout = _decoded(self._read(LAYOUT), Layout, LAYOUT)
        if not layout.imageLayoutVersion.startswith("1."):
            raise InvalidModel("The archive has another version of the OCI image layout; make it anew as 1.0.0.")
        tags: dict[str, list[str]] = {}
        manifests: dict[str, Descriptor] = {}
        for descriptor in self._manifests(_decoded(self._read(INDEX), Index, INDEX), _MAX_DEPTH):
            manifests.setdefault(descriptor.digest, descriptor)
            tags.setdefault(descriptor.digest, []).append(descriptor.annotation(REF_NAME))
            if len(manifests) > MAX_FILES:
                raise InvalidModel(f"The archive lists more than {MAX_FILES} manifests; bring fewer at a time.")
        found = (self._file(descriptor, tags[digest]) for digest, descriptor in manifests.items())
        return [file for file in found if file is not None]

    def _manifests(self, index: Index, depth: int) -> Iterator[Descriptor]:
        for descriptor in index.manifests or ():
            if descriptor.mediaType in INDEX_TYPES:
                if depth == 1:
                    raise InvalidModel("The archive has indexes within indexes; make it anew with one.")
                yield from self._manifests(_decoded(self._text(descriptor), Index, "an index"), depth - 1)
            elif descriptor.mediaType in MANIFEST_TYPES:
                yield descriptor

    def _file(self, descriptor: Descriptor, names: list[str]) -> Stored | None:
        """The file of a manifest; None for one that has another kind of artifact."""
        manifest = _decoded(self._text(descriptor), Manifest, "a manifest")
        if manifest.config.mediaType == ADAPTER_CONFIG_TYPE:
            layer = _only_layer(manifest, ADAPTER_TYPE)
            adapter = _checked_adapter(self._said(manifest.config, BundledAdapter))
            return AdapterFile(layer.digest, layer.size, self._offset(layer), adapter)
        if manifest.config.mediaType == MATRIX_CONFIG_TYPE:
            layer = _only_layer(manifest, MATRIX_TYPE)
            matrix = self._said(manifest.config, BundledMatrix)
            return MatrixFile(layer.digest, layer.size, self._offset(layer), matrix)
        models = [layer for layer in manifest.layers or () if layer.is_gguf]
        if not models:
            return None
        if len(models) > 1:
            raise InvalidModel("A model in the archive is split into several files; merge them into one GGUF file.")
        layer = models[0]
        tag = next((tag for tag in map(_tag, names) if tag), "")
        return BundledFile(layer.digest, layer.size, self._offset(layer), tag, self._about(manifest.config))

    def _offset(self, layer: Descriptor) -> int:
        """Where the bytes of a layer begin. Raises InvalidModel when it is not there, or of another size."""
        place = self._archive.members.get(blob_name(_checked_digest(layer)))
        if place is None:
            raise InvalidModel(f"The archive has no blob {layer.digest}, which it lists; get it again.")
        if place.size_bytes != layer.size:
            raise InvalidModel(f"The blob {layer.digest} has another size than the archive lists; get it again.")
        return place.offset

    def _said(self, config: Descriptor, kind: type[M]) -> M:
        """What a config of ours says. Raises InvalidModel for another version's."""
        return _ours(bytes(_decoded(self._text(config), _Config, "a config").quantry), kind)

    def _about(self, config: Descriptor) -> BundledVariant | None:
        """What quantry has written into a config; None for one of others', whatever that is."""
        if not config.mediaType.endswith("json"):
            return None
        raw = bytes(_decoded(self._text(config), _Config, "a config").quantry)
        return None if raw == b"null" else _checked_variant(_ours(raw, BundledVariant))

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


def _ours(raw: bytes, kind: type[M]) -> M:
    about = _decoded(raw, kind, "a config of quantry's")
    if about.version != VERSION:
        raise InvalidModel("The bundle was made by another version of quantry; export it with this one.")
    return about


def _checked_variant(about: BundledVariant) -> BundledVariant:
    """The same, when its presets are such as names can have here."""
    if len(about.presets) > MAX_PRESETS or len(msgspec.json.encode(about.presets)) > _MAX_PRESET_BYTES:
        raise InvalidModel("A variant in the archive comes with more presets than a model has; make it anew.")
    for bundled in about.presets:
        try:
            check_preset(bundled.preset)
        except InvalidParameter as error:
            raise InvalidModel(f"A preset in the archive is none: {error.message}") from None
    return about


def _checked_adapter(about: BundledAdapter) -> BundledAdapter:
    try:
        check_name(about.name)
    except InvalidName as error:
        raise InvalidModel(f"An adapter in the archive has no name. {error.message}") from None
    return about


def _check_names(names: Sequence[str]) -> None:
    if len({name.lower() for name in names}) < len(names):
        raise InvalidModel("The archive has two adapters of one name; make it anew.")


def _only_layer(manifest: Manifest, media_type: str) -> Descriptor:
    layers = [layer for layer in manifest.layers or () if layer.mediaType == media_type]
    if len(layers) != 1:
        raise InvalidModel("An adapter or importance matrix in the archive is not one file; make it anew.")
    return layers[0]


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
