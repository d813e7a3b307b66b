"""llama-server's way with LoRA adapters: by number, with scales that hold for the server. `/lora-adapters`, `lora`.

A number is the place of an adapter among those of its model, the oldest first. No adapter is used until a scale says
so, as with `--lora-init-without-apply`; scales are forgotten when the server ends, and hold in this dialect alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body

from service.api.documents import errors
from service.api.llama_server_model import meant
from service.api.llama_server_shapes import AppliedShape, LlamaServerError, LoraAdapterShape, LoraBody
from service.api.llama_server_state import Model
from service.api.services import Services, Use
from service.domain.adapters import MAX_ADAPTERS
from service.domain.catalog import Adapter, Variant
from service.domain.errors import AdapterNotFound, InvalidParameter
from service.domain.generation import AdapterUse

router = APIRouter(tags=["llama-server"])

Scales = Annotated[list[LoraBody], Body(max_length=MAX_ADAPTERS)]


@router.get(
    "/lora-adapters",
    summary="LoRA adapters of a model (llama-server)",
    responses=errors(404, 409, model=LlamaServerError),
)
async def lora_adapters(services: Use, model: Model = None) -> list[LoraAdapterShape]:
    """With the scales that requests without `lora` get; empty where it is not clear which model is meant."""
    try:
        variant = await meant(services, model)
    except InvalidParameter:
        if model is not None:
            raise
        return []
    found = await asyncio.to_thread(services.catalog.adapters.all, variant.model)
    scales = services.lora_scales.get(variant.model.folded, {})
    return [
        LoraAdapterShape(id=number, path=adapter.name, scale=scales.get(adapter.digest, 0.0))
        for number, adapter in enumerate(found)
    ]


@router.post(
    "/lora-adapters",
    summary="Set the scales of LoRA adapters (llama-server)",
    responses=errors(404, 409, body=True, model=LlamaServerError),
)
async def set_lora_adapters(body: Scales, services: Use, model: Model = None) -> AppliedShape:
    """For requests of this dialect without `lora`. Adapters that are not listed get 0."""
    variant = await meant(services, model)
    found = await asyncio.to_thread(services.catalog.adapters.all, variant.model)
    chosen = {adapter.digest: scale for adapter, scale in _chosen(found, body)}
    services.lora_scales[variant.model.folded] = chosen
    return AppliedShape()


async def lora_uses(services: Services, variant: Variant, asked: Sequence[LoraBody]) -> tuple[AdapterUse, ...]:
    """The adapters of a request: those that it lists, else those that have a scale. Raises AdapterNotFound."""
    scales = services.lora_scales.get(variant.model.folded, {})
    if not asked and not any(scales.values()):
        return ()
    found = await asyncio.to_thread(services.catalog.adapters.all, variant.model)
    if asked:
        return tuple(AdapterUse(adapter.name, scale) for adapter, scale in _chosen(found, asked))
    return tuple(AdapterUse(adapter.name, scales[adapter.digest]) for adapter in found if scales.get(adapter.digest))


def _chosen(found: Sequence[Adapter], asked: Sequence[LoraBody]) -> list[tuple[Adapter, float]]:
    scales: dict[int, float] = {}
    for one in asked:
        if one.id >= len(found):
            raise AdapterNotFound(
                f"There is no LoRA adapter {one.id}; the model has {len(found)}, see GET /lora-adapters.", param="lora"
            )
        scales[one.id] = one.scale  # the last word counts, as with llama-server
    return [(found[number], scale) for number, scale in scales.items()]
