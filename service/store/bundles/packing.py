"""One model as the members of a bundle: variants and what goes with them. Equal ones give equal bytes: no clock, no
chance order.

The small members come first, so that a reader knows everything before the first GGUF file begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from service.domain.bundles import VERSION, BundledAdapter, BundledMatrix, BundledPreset, BundledVariant
from service.domain.catalog import Adapter, Measurement, Variant
from service.domain.evaluation import Card
from service.domain.importance import ImportanceMatrix
from service.domain.names import split_tag
from service.domain.presets import Preset
from service.store.bundles import tar
from service.store.bundles.archive import INDEX, LAYOUT
from service.store.bundles.oci import (
    ADAPTER_CONFIG_TYPE,
    ADAPTER_TYPE,
    CONFIG_TYPE,
    CREATED,
    GGUF_TYPE,
    MANIFEST_TYPE,
    MATRIX_CONFIG_TYPE,
    MATRIX_TYPE,
    REF_NAME,
    TITLE,
    Descriptor,
    Index,
    Layout,
    Manifest,
    blob_name,
    digest_of,
)

_MIB = 1 << 20
# What the layout's annotation may be; a tag of ours can begin with "_".
_REF_NAME = re.compile(r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A blob of the store, as a member."""

    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Packed:
    """The bytes of a bundle in order: texts and blobs. `digest` stands for all of them."""

    parts: tuple[bytes | StoredFile, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into a bundle: `cards` and `measurements` by a variant's id, `presets` by the tag in lower case."""

    variants: Sequence[Variant]
    cards: Mapping[int, Card] = field(default_factory=dict)
    measurements: Mapping[int, Sequence[Measurement]] = field(default_factory=dict)
    presets: Mapping[str, Preset] = field(default_factory=dict)
    adapters: Sequence[Adapter] = ()
    matrices: Sequence[ImportanceMatrix] = ()

    @property
    def file_count(self) -> int:
        """How many files there are."""
        return len(self.variants) + len(self.adapters) + len(self.matrices)


def pack(contents: Contents) -> Packed:
    """A bundle of these: first the models, then what goes with them."""
    packing = _Packing()
    for variant in sorted(contents.variants, key=lambda one: one.id):
        # As is the custom of the layout, each tag has an entry of its own.
        names = [name for name in dict.fromkeys((variant.tag, *variant.tags)) if _REF_NAME.fullmatch(name)]
        config = _config(variant, contents)
        packing.add(variant, CONFIG_TYPE, config, GGUF_TYPE, f"{variant.model.model}-{variant.tag}.gguf", names)
    for matrix in sorted(contents.matrices, key=lambda one: one.digest):
        said = BundledMatrix(VERSION, matrix.model, matrix.created_at, matrix.source_digest, matrix.dataset_digest)
        packing.add(matrix, MATRIX_CONFIG_TYPE, _ours(said), MATRIX_TYPE, "importance matrix")
    for adapter in sorted(contents.adapters, key=lambda one: one.name.lower()):
        about = BundledAdapter(VERSION, adapter.model.display, adapter.name, adapter.created_at, adapter.facts)
        packing.add(adapter, ADAPTER_CONFIG_TYPE, _ours(about), ADAPTER_TYPE, f"{adapter.name} (adapter)")
    return packing.packed()


class _Packing:
    """A bundle in the making: its texts and files by digest, and the entries of its index."""

    def __init__(self) -> None:
        self._texts: dict[str, bytes] = {}
        self._files: dict[str, int] = {}
        self._listed: list[Descriptor] = []

    def add(
        self,
        file: Variant | Adapter | ImportanceMatrix,
        config_type: str,
        config: bytes,
        layer_type: str,
        title: str,
        names: Sequence[str] = (),
    ) -> None:
        """A manifest of one file, with an entry for each of `names`, or one without a name."""
        self._files[file.digest] = file.size_bytes
        layer = Descriptor(layer_type, file.digest, file.size_bytes, {TITLE: title})
        shown = file.name if isinstance(file, Variant) else title
        annotations = {TITLE: shown, CREATED: file.created_at}
        manifest = Manifest(2, self._put(config_type, config), MANIFEST_TYPE, (layer,), annotations)
        described = self._put(MANIFEST_TYPE, msgspec.json.encode(manifest))
        named = [msgspec.structs.replace(described, annotations={REF_NAME: name}) for name in names]
        self._listed += named or [described]

    def packed(self) -> Packed:
        """All of it."""
        index = msgspec.json.encode(Index(2, manifests=tuple(self._listed)))
        members: list[tuple[str, bytes | StoredFile]] = [
            (LAYOUT, msgspec.json.encode(Layout())),
            (INDEX, index),
            *((blob_name(digest), text) for digest, text in self._texts.items()),
            *((blob_name(digest), StoredFile(digest, size)) for digest, size in self._files.items()),
        ]
        return Packed(tuple(_archived(members)), digest_of(index))

    def _put(self, media_type: str, text: bytes) -> Descriptor:
        digest = digest_of(text)
        self._texts[digest] = text
        return Descriptor(media_type, digest, len(text))


def _ours(about: BundledMatrix | BundledAdapter) -> bytes:
    return msgspec.json.encode({"quantry": about})


def _config(variant: Variant, contents: Contents) -> bytes:
    facts = variant.facts
    about = BundledVariant(
        VERSION,
        variant.model.display,
        variant.flavour,
        variant.quantization,
        variant.tags,
        variant.created_at,
        facts,
        variant.lineage,
        contents.cards.get(variant.id),
        tuple(contents.measurements.get(variant.id, ())),
        _presets(variant, contents),
    )
    described = {
        "format": "gguf",
        "quantization": split_tag(variant.quantization)[1] or variant.quantization,
        "parameters": f"{facts.parameters / 1e6:.2f} M",
        "architecture": facts.shape.architecture,
        "size": f"{variant.size_bytes / _MIB:.2f} MiB",
    }
    return msgspec.json.encode(
        {
            "config": described,
            "descriptor": {"createdAt": variant.created_at},
            "rootfs": {"type": "rootfs", "diff_ids": [variant.digest]},
            "quantry": about,
        }
    )


def _presets(variant: Variant, contents: Contents) -> tuple[BundledPreset, ...]:
    """What the names of a variant add, with the tags of what belongs to them instead of ids."""
    tags = {other.id: other.tag for other in contents.variants}
    words = sorted({word.lower() for word in (variant.tag, *variant.tags)} & contents.presets.keys())
    return tuple(
        BundledPreset(
            word,
            replace(preset, owned=(), parameters=dict(sorted(preset.parameters.items()))),
            tuple(sorted(tags[number] for number in preset.owned if number in tags)),
        )
        for word, preset in ((word, contents.presets[word]) for word in words)
    )


def _archived(members: Iterable[tuple[str, bytes | StoredFile]]) -> Iterable[bytes | StoredFile]:
    """The archive's bytes: texts as long as they can be, between the files."""
    text = bytearray()
    for name, content in members:
        size = len(content) if isinstance(content, bytes) else content.size_bytes
        text += tar.write_header(name, size)
        if isinstance(content, bytes):
            text += content
        else:
            yield bytes(text)
            yield content
            text.clear()
        text += bytes(tar.padding(size))
    yield bytes(text) + tar.END
