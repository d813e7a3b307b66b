"""The smaller variant that drafts for a worker: at most one, in the same process, under the same budget."""

from __future__ import annotations

from dataclasses import replace

from service.domain.catalog import Variant
from service.domain.errors import Conflict, DoesNotFit
from service.domain.memory import CacheType, memory_need
from service.workers.slots import Slot


def promise_draft(slot: Slot, draft: Variant, free_bytes: int) -> None:
    """Give a slot with a ready worker the memory for a second, smaller model, of `free_bytes`.

    Raises Conflict for a draft that is no help, DoesNotFit when there is no room for it.
    """
    if slot.draft is not None and slot.draft.digest == draft.digest:
        return
    if draft.digest == slot.variant.digest:
        raise Conflict(f"{draft.name} cannot draft for itself; name a smaller level of it as draft.", param="draft")
    if slot.draft is not None:
        raise Conflict(
            f"{slot.draft.name} drafts for {slot.variant.name} already; use it, or unload the model first.",
            param="draft",
        )
    assert slot.placement is not None, "a ready worker has its memory"
    # Its context is set up as that of the model it drafts for, but for the types of its cache.
    options = replace(slot.placement.options, cache_type_k=CacheType.F16, cache_type_v=CacheType.F16)
    need = memory_need(draft.facts, slot.placement.cells, slot.placement.parallel, options)
    # The process is there already.
    needed = need.total_bytes - need.runtime_bytes
    if needed > free_bytes:
        raise DoesNotFit(
            f"{draft.name} needs {needed} bytes beside {slot.variant.name} to draft for it, and {max(0, free_bytes)} "
            "are free. Use a smaller draft, unload other models, or raise QUANTRY_MEMORY_BUDGET_BYTES.",
            param="draft",
        )
    slot.draft, slot.draft_bytes = draft, needed
