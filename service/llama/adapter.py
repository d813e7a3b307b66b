"""LoRA adapters: loaded once beside a model's weights, switched on and off for each batch.

Used in the worker child, by the thread that has the context. Which requests may share a batch is the scheduler's
business: an adapter works on every token of a batch.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as native

from service.domain.errors import LoadFailed
from service.llama.backend import ErrorLines, listening_to_log
from service.llama.context import Context
from service.llama.model import Model


class Adapter:
    """A loaded adapter file. Close it after every context that used it."""

    def __init__(self, model: Model, path: Path) -> None:
        """Load `path` for `model`.

        Raises LoadFailed with llama.cpp's reason for what is no adapter, or none for this model; and for adapters that
        work only after certain tokens (aLoRA), which would need a switch in the middle of a prompt.
        """
        errors = ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if not handle:
            raise LoadFailed(f"llama.cpp could not load the adapter: {errors.reason()}.")
        self.model = model
        self.handle = handle
        if native.llama_adapter_get_alora_n_invocation_tokens(handle):
            self.close()
            raise LoadFailed("The adapter works only after certain tokens (aLoRA), which is not carried out here.")

    def close(self) -> None:
        """Free it; the object is unusable afterwards. A model that is closed has freed its adapters already."""
        if self.handle and self.model.handle:
            native.llama_adapter_lora_free(self.handle)
        self.handle = None


AdapterSet = tuple[tuple[Adapter, float], ...]

# What each context has switched on, so that asking for it again costs nothing.
_in_use: weakref.WeakKeyDictionary[Context, AdapterSet] = weakref.WeakKeyDictionary()


def use_adapters(context: Context, adapters: Sequence[tuple[Adapter, float]]) -> None:
    """Compute with these adapters and scales, and no others, from the next decode on.

    llama.cpp adds them up in an order that follows the one they are given in: the same one gives the same rounding,
    whatever the addresses of the objects. The order makes no other difference.

    What the cells of a sequence hold was computed with the adapters of its time, and fits no others. The same set
    again, and a scale of 0 instead of leaving an adapter out, are free.
    """
    wanted: AdapterSet = tuple((adapter, scale) for adapter, scale in adapters if scale != 0.0)
    if set(_in_use.get(context, ())) == set(wanted):
        return
    assert all(adapter.handle for adapter, _ in wanted), "a closed adapter"
    assert len({id(adapter) for adapter, _ in wanted}) == len(wanted), "an adapter named twice"
    handles = (native.llama_adapter_lora_p_ctypes * len(wanted))(
        *(ctypes.cast(adapter.handle, native.llama_adapter_lora_p_ctypes) for adapter, _ in wanted)
    )
    scales = (ctypes.c_float * len(wanted))(*(scale for _, scale in wanted))
    status = native.llama_set_adapters_lora(context.handle, handles, len(wanted), scales)
    assert status == 0, "llama.cpp takes every adapter that was loaded for the context's model"
    _in_use[context] = wanted
