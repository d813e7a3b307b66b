"""Variants of one model as the members of a bundle. The same variants give the same bytes: no clock, no chance order.

The small members come first, so that a reader knows everything before the first GGUF file begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from service.domain.bundles import VERSION, BundledVariant
from service.domain.catalog import Measurement, Variant
from service.domain.evaluation import Card
from service.domain.names import split_tag
from service.store.bundles import tar
from service.store.bundles.archive import INDEX, LAYOUT
from service.store.bundles.oci import (
    CONFIG_TYPE,
    CREATED,
    GGUF_TYPE,
    MANIFEST_TYPE,
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


def pack(
    variants: Sequence[Variant], cards: Mapping[int, Card], measurements: Mapping[int, Sequence[Measurement]]
) -> Packed:
    """A bundle of these variants; `cards` and `measurements` by the id of a variant."""
    texts: dict[str, bytes] = {}
    files: dict[str, int] = {}
    listed: list[Descriptor] = []
    for variant in sorted(variants, key=lambda one: one.id):
        files[variant.digest] = variant.size_bytes
        config = _put(texts, CONFIG_TYPE, _config(variant, cards.get(variant.id), measurements.get(variant.id, ())))
        layer = Descriptor(
            GGUF_TYPE, variant.digest, variant.size_bytes, {TITLE: f"{variant.model.model}-{variant.tag}.gguf"}
        )
        annotations = {TITLE: variant.name, CREATED: variant.created_at}
        manifest = Manifest(2, config, MANIFEST_TYPE, (layer,), annotations)
        described = _put(texts, MANIFEST_TYPE, msgspec.json.encode(manifest))
        # As is the custom of the layout, each tag has an entry of its own.
        names = [name for name in dict.fromkeys((variant.tag, *variant.tags)) if _REF_NAME.fullmatch(name)]
        listed += [msgspec.structs.replace(described, annotations={REF_NAME: name}) for name in names] or [described]
    index = msgspec.json.encode(Index(2, manifests=tuple(listed)))
    members: list[tuple[str, bytes | StoredFile]] = [
        (LAYOUT, msgspec.json.encode(Layout())),
        (INDEX, index),
        *((blob_name(digest), text) for digest, text in texts.items()),
        *((blob_name(digest), StoredFile(digest, size)) for digest, size in files.items()),
    ]
    return Packed(tuple(_archived(members)), digest_of(index))


def _config(variant: Variant, card: Card | None, measurements: Sequence[Measurement]) -> bytes:
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
        card,
        tuple(measurements),
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


def _put(texts: dict[str, bytes], media_type: str, text: bytes) -> Descriptor:
    digest = digest_of(text)
    texts[digest] = text
    return Descriptor(media_type, digest, len(text))


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
