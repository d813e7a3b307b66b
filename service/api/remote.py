"""`/v1/remote`: what can be pulled from elsewhere, with sizes, before anything is fetched."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path

from service.api.documents import errors
from service.api.remote_shapes import RemoteFileShape, RemoteLevelShape, RemoteShape
from service.api.services import Services, Use
from service.domain.addresses import MAX_ADDRESS, Address, HubAddress, parse_address
from service.domain.errors import InvalidName
from service.domain.remote import RemoteLevel, RemoteModel, fits

router = APIRouter(prefix="/v1/remote", tags=["native"])

# A checkpoint is there twice for a while: as it came, and as what is made of it.
_CONVERTED_SHARE = 2


@router.get("/{address:path}", summary="Look at a model elsewhere", responses=errors(404, 502, 503, 504))
async def look(
    address: Annotated[
        str,
        Path(
            max_length=MAX_ADDRESS,
            description="`hf.co/owner/repo[:LEVEL][@revision]`, `https://host/file.gguf` or "
            "`[host/][namespace/]model[:tag]`, slashes as they are or encoded.",
        ),
    ],
    services: Use,
) -> RemoteShape:
    """Its levels with their sizes, and which of them the address means. Nothing is fetched."""
    parsed = parse_address(address, param="address")
    model, choice = await services.looks.at(parsed.display)
    return await asyncio.to_thread(_shape, services, parsed, model, choice)


def _shape(services: Services, address: Address, model: RemoteModel, choice: str) -> RemoteShape:
    names: dict[str, list[str]] = {}
    for variant in services.catalog.variants():
        names.setdefault(variant.digest, []).append(variant.name)
    room = services.blobs.room_bytes()
    try:
        name = address.name
    except InvalidName:
        name = None
    return RemoteShape(
        address=address.display,
        name=name,
        revision=model.revision,
        choice=choice,
        levels=[_level(services, address, level, choice, names, room) for level in model.levels],
    )


def _level(
    services: Services, address: Address, level: RemoteLevel, choice: str, names: dict[str, list[str]], room: int
) -> RemoteLevelShape:
    own = replace(address, choice=level.choice) if isinstance(address, HubAddress) else address
    digest = level.files[0].digest if len(level.files) == 1 else None
    takes = level.size_bytes * (_CONVERTED_SHARE if level.converts or len(level.files) > 1 else 1)
    return RemoteLevelShape(
        level=level.level,
        address=own.display,
        size_bytes=level.size_bytes,
        files=[RemoteFileShape(name=file.name, size_bytes=file.size_bytes, digest=file.digest) for file in level.files],
        converts=level.converts,
        lossy_source=level.lossy_source,
        recommended=level.choice == choice,
        fits=fits(level, services.looks.memory_bytes),
        fits_disk=takes <= room,
        stored=names.get(digest or "", []),
    )
