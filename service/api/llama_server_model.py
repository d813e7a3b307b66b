"""Which variant a request of llama-server's tools means: they were made for a server with one model, and name none."""

from __future__ import annotations

import asyncio

from service.api.services import Services
from service.domain.catalog import Variant
from service.domain.errors import InvalidParameter


async def meant(services: Services, name: str | None) -> Variant:
    """The variant of that name; without one, the one in memory that was used last, else the only model there is.

    Raises ModelNotFound, InvalidName, BlobCorrupt, and InvalidParameter where it is not clear which one is meant.
    """
    if name is not None:
        return await services.servable(name)
    loaded = [status for status in services.pool.status() if services.pool.is_loaded(status.digest)]
    if loaded:
        # What is at work never expires.
        last = max(loaded, key=lambda status: (status.expires_at is None, status.expires_at or status.loaded_at or ""))
        return await services.servable(last.name)
    models = {variant.model.display for variant in await asyncio.to_thread(services.catalog.variants)}
    if len(models) == 1:
        return await services.servable(models.pop())
    raise InvalidParameter(
        "There is more than one model, or none, and none is in memory; name the one that is meant.", param="model"
    )
