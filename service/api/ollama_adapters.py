"""Adapters of names that Ollama's `create` makes: taken in for the source's model, then given to the name's own.

Their names are made of their content, so that the same adapter is the same one, and another never takes its place.
Blocks on the database, but for `adapter_spec`: to be called off the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress

from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.errors import AdapterNotFound, BlobNotFound, InvalidParameter, QuantryError
from service.domain.generation import AdapterUse
from service.domain.jobs import AdapterSpec, NamedBlob, StoredFile
from service.domain.names import ModelKey, ModelRef, parse_digest
from service.domain.presets import Preset

_NAME_CHARACTERS = 60


async def check_files(services: Services, files: Mapping[str, str]) -> None:
    """Raise InvalidParameter for what is no digest, BlobNotFound for a file that has not been sent."""
    for name, digest in files.items():
        try:
            there = await asyncio.to_thread(services.blobs.has, parse_digest(digest))
        except QuantryError as error:
            raise InvalidParameter(f"adapters: {error.message}", param="adapters") from error
        if not there:
            raise BlobNotFound(
                f"No blob with the digest of {name[:100]!r}; POST it under /api/blobs first.", param="adapters"
            )


def adapter_spec(ref: ModelRef, base: Variant, files: Mapping[str, str]) -> AdapterSpec:
    """What to ask of a job: one file is a GGUF adapter, several are those of a PEFT adapter."""
    content = hashlib.sha256("\n".join(sorted(files.values())).encode()).hexdigest()[:12]
    name = f"{ref.key.model[:_NAME_CHARACTERS]}-{content}"
    stored = StoredFile(base.name, base.digest)
    if len(files) == 1:
        return AdapterSpec(name, stored, digest=next(iter(files.values())))
    return AdapterSpec(name, stored, files=tuple(NamedBlob(*item) for item in sorted(files.items())))


def give_adapters(services: Services, source: ModelKey, target: ModelKey, uses: Iterable[AdapterUse]) -> None:
    """Let the adapters of a name's preset, which `source` has, be adapters of the name's model `target` as well.

    Raises AdapterNotFound, NameTaken.
    """
    adapters = services.catalog.adapters
    if source.folded == target.folded:
        return
    for adapter in adapters.find(source, [use.name for use in uses]).values():
        adapters.add(target, adapter.name, adapter.digest, adapter.size_bytes, adapter.facts)


def drop_adapters(services: Services, model: ModelKey, gone: Preset | None, left: Iterable[Preset]) -> None:
    """Delete the adapters of a preset that is gone, but for those that presets of the model that are left have too."""
    needed = {use.name.lower() for preset in left for use in preset.adapters}
    for use in () if gone is None else gone.adapters:
        if use.name.lower() not in needed:
            with suppress(AdapterNotFound):
                services.catalog.adapters.delete(model, use.name)
