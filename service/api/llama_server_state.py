"""What llama-server tells of itself: `/props`, `/slots`. Only what is true here; nothing is set."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from service.api.documents import errors
from service.api.generation import VARIANT_HEADER
from service.api.llama_server_answer import settings
from service.api.llama_server_model import meant
from service.api.llama_server_shapes import LlamaServerError, SlotShape
from service.api.responses import json_response
from service.api.services import Services, Use
from service.api.shapes import NAME_PATTERN
from service.api.streams import unless_gone
from service.domain.catalog import Variant
from service.domain.errors import InvalidParameter, Unavailable
from service.domain.generation import GenerationRequest
from service.workers.questions import Describe
from service.workers.status import WorkerStatus

router = APIRouter(tags=["llama-server"])

Model = Annotated[
    str | None,
    Query(
        max_length=600,
        description="A variant's name; without it the one in memory that was used last.",
        json_schema_extra={"anyOf": [{"type": "string", "pattern": NAME_PATTERN}]},
    ),
]


@router.get(
    "/props",
    summary="What a variant is served with (llama-server)",
    responses=errors(404, 409, 429, 503, 504, model=LlamaServerError),
)
async def props(request: Request, services: Use, model: Model = None) -> Response:
    """Loads the variant where it is not in memory. Where it is not clear which one is meant: a router's answer."""
    try:
        variant = await meant(services, model)
    except InvalidParameter:
        if model is not None:
            raise
        return json_response(_router_props(services))
    found = await unless_gone(request.receive, services.pool.ask(variant, Describe()))
    status = _status(services, variant)
    answer = {
        "default_generation_settings": {
            "params": settings(None, GenerationRequest()),
            "n_ctx": services.options.context_length if status is None else status.context_length,
        },
        "total_slots": 1 if status is None else status.parallel,
        "model_alias": variant.name,
        "model_ftype": variant.facts.quantization,
        # Clients show it; where files lie is nobody's business.
        "model_path": variant.name,
        "modalities": {"vision": False, "video": False, "audio": False},
        "media_marker": "",
        "endpoint_slots": True,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "ui": False,
        "ui_settings": {},
        "chat_template": found.chat_template or "",
        "chat_template_caps": {
            "supports_tools": found.takes_tools,
            "supports_tool_calls": found.takes_tools,
            "supports_system_role": True,
            "supports_parallel_tool_calls": found.takes_tools,
            "supports_preserve_reasoning": found.thinks,
        },
        "bos_token": found.bos_text,
        "eos_token": found.eos_text,
        "build_info": _build(services),
        "is_sleeping": False,
        "cors_proxy_enabled": False,
    }
    return json_response(answer, headers={VARIANT_HEADER: variant.name})


@router.get(
    "/slots",
    summary="Sequences of a loaded variant (llama-server)",
    responses=errors(404, 409, 503, model=LlamaServerError),
)
async def slots(
    services: Use,
    model: Model = None,
    fail_on_no_slot: Annotated[
        str | None, Query(max_length=16, description="Anything: 503 where every sequence is at work.")
    ] = None,
) -> list[SlotShape]:
    """Empty where the variant is not in memory. Sequences have no number here: those at work are listed first."""
    status = _status(services, await meant(services, model))
    if status is None:
        return []
    if fail_on_no_slot and status.active_requests >= status.parallel:
        raise Unavailable("Every slot is at work; try again in a moment.", retry_after_seconds=1)
    return [
        SlotShape(
            id=number, n_ctx=status.context_length, speculative=True, is_processing=number < status.active_requests
        )
        for number in range(status.parallel)
    ]


def _router_props(services: Services) -> dict[str, Any]:
    return {
        "role": "router",
        "models_autoload": True,
        "model_alias": "quantry",
        "model_path": "none",
        "default_generation_settings": {"params": None, "n_ctx": 0},
        "ui_settings": {},
        "build_info": _build(services),
        "cors_proxy_enabled": False,
    }


def _build(services: Services) -> str:
    return f"quantry {services.options.version}"


def _status(services: Services, variant: Variant) -> WorkerStatus | None:
    """How the variant is loaded; None where it is not in memory."""
    if not services.pool.is_loaded(variant.digest):
        return None
    return next((status for status in services.pool.status() if status.digest == variant.digest), None)
