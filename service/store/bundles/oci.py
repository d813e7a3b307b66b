"""OCI's image layout: descriptors, index, manifest; and the media types of models. Values only.

A variant is an artifact as Docker Model Runner has them: their config and layer types are what other tools look for,
and a GGUF file is one layer, as it is. What only quantry knows stands in the config under a key of its own.
"""

from __future__ import annotations

import hashlib

import msgspec

LAYOUT_VERSION = "1.0.0"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.docker.ai.model.config.v0.1+json"
GGUF_TYPE = "application/vnd.docker.ai.gguf.v3"
# Ours: what goes with a model. Their files are GGUF as well, and no models; readers of models pass them over.
ADAPTER_CONFIG_TYPE = "application/vnd.quantry.adapter.config.v1+json"
ADAPTER_TYPE = "application/vnd.quantry.adapter.v1"
MATRIX_CONFIG_TYPE = "application/vnd.quantry.importance-matrix.config.v1+json"
MATRIX_TYPE = "application/vnd.quantry.importance-matrix.v1"

INDEX_TYPES = frozenset({INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFEST_TYPES = frozenset({MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json", ""})
# Docker Model Runner's, and Ollama's. ORAS gives any type: there the file's title tells.
GGUF_TYPES = frozenset({GGUF_TYPE, "application/vnd.ollama.image.model"})

REF_NAME = "org.opencontainers.image.ref.name"
TITLE = "org.opencontainers.image.title"
CREATED = "org.opencontainers.image.created"


class Descriptor(msgspec.Struct, frozen=True, omit_defaults=True):
    """A blob of the layout: what it is, its sha256 and its bytes."""

    mediaType: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None

    def annotation(self, key: str) -> str:
        """The annotation, or nothing."""
        return (self.annotations or {}).get(key, "")

    @property
    def is_gguf(self) -> bool:
        """Whether it is the file of a model."""
        return self.mediaType in GGUF_TYPES or self.annotation(TITLE).lower().endswith(".gguf")


class Layout(msgspec.Struct, frozen=True):
    """`oci-layout`."""

    imageLayoutVersion: str = LAYOUT_VERSION


class Index(msgspec.Struct, frozen=True):
    """`index.json`, or an index among the blobs."""

    schemaVersion: int
    mediaType: str = INDEX_TYPE
    manifests: tuple[Descriptor, ...] | None = None


class Manifest(msgspec.Struct, frozen=True):
    """A manifest: a config, and layers."""

    schemaVersion: int
    config: Descriptor
    mediaType: str = MANIFEST_TYPE
    layers: tuple[Descriptor, ...] | None = None
    annotations: dict[str, str] | None = None


def digest_of(content: bytes) -> str:
    """`sha256:` and its hexadecimal digits."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def blob_name(digest: str) -> str:
    """The member that holds a blob."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"
