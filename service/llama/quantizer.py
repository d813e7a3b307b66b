"""llama.cpp's quantizer: one GGUF file to another, with every option that a recipe has.

What the options mean for a file, and which of them would end the process, is decided in `service.quantization`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import QuantizationFailed
from service.domain.quants import GGML_TYPES, QUANTIZATIONS
from service.domain.recipes import MetadataOverride, Recipe, TypeOverride
from service.llama.backend import ErrorLines, listening_to_log, start_backend

_TYPE_NUMBERS = {ggml.name: number for number, ggml in GGML_TYPES.items()}


def quantize_model(
    source: Path,
    target: Path,
    recipe: Recipe,
    *,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    dry_run: bool = False,
    threads: int = 0,
    buffer_bytes: int = 0,
    on_log: Callable[[str], None] | None = None,
) -> None:
    """Run llama.cpp's quantizer from one GGUF file to another, by a recipe with a level.

    `importance` has one weight for each input column, by the tensor's name in the source: flat, all experts one after
    the other. `on_log` gets each piece of the log as it comes, `[ n/ m] name ...` among it: the library has no other
    progress. `dry_run` writes nothing and logs what each tensor would become. `threads` 0 means all cores.
    `buffer_bytes` bounds the rows held in memory at once, 0 leaves it to llama.cpp; the result does not depend on it.
    Raises QuantizationFailed with llama.cpp's own reason.
    """
    start_backend()
    params = native.llama_model_quantize_default_params()
    params.ftype = QUANTIZATIONS[recipe.quantization].file_type
    params.nthread = threads
    params.dry_run = dry_run
    params.max_buf_size = buffer_bytes
    params.allow_requantize = recipe.allow_requantize
    params.quantize_output_tensor = not recipe.keep_output
    params.pure = recipe.pure
    if recipe.output_type is not None:
        params.output_tensor_type = _TYPE_NUMBERS[recipe.output_type]
    if recipe.token_embedding_type is not None:
        params.token_embedding_type = _TYPE_NUMBERS[recipe.token_embedding_type]
    # The arrays that the parameters point to; a ctypes structure keeps what is assigned to its pointers alive.
    if recipe.overrides:
        params.tt_overrides = _type_overrides(recipe.overrides)
    if recipe.metadata:
        params.kv_overrides = _metadata_overrides(recipe.metadata)
    if recipe.prune_layers:
        params.prune_layers = (ctypes.c_int32 * (len(recipe.prune_layers) + 1))(*recipe.prune_layers, -1)
    flat = {} if importance is None else {name: _contiguous(values) for name, values in importance.items()}
    if importance is not None:
        params.imatrix = _importance(flat)
    errors = ErrorLines()

    def listener(level: int, text: str) -> None:
        errors(level, text)
        if on_log is not None:
            on_log(text)

    with listening_to_log(listener):
        status = native.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise QuantizationFailed(f"llama.cpp did not quantize the model: {errors.reason()}.")


def _type_overrides(overrides: Sequence[TypeOverride]) -> ctypes.Array[Any]:
    """An array that ends with an entry without a pattern."""
    made: ctypes.Array[Any] = (native.llama_model_tensor_override * (len(overrides) + 1))()
    for entry, override in zip(made, overrides, strict=False):
        entry.pattern = override.pattern.encode()
        entry.type = _TYPE_NUMBERS[override.type]
    return made


def _metadata_overrides(overrides: Sequence[MetadataOverride]) -> ctypes.Array[Any]:
    """An array that ends with an empty key; keys and texts have room for 127 bytes."""
    made: ctypes.Array[Any] = (native.llama_model_kv_override * (len(overrides) + 1))()
    for entry, override in zip(made, overrides, strict=False):
        entry.key = override.key.encode()
        value = override.value
        if isinstance(value, bool):  # before int, which it is as well
            entry.tag, entry.value.val_bool = native.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
        elif isinstance(value, int):
            entry.tag, entry.value.val_i64 = native.LLAMA_KV_OVERRIDE_TYPE_INT, value
        elif isinstance(value, float):
            entry.tag, entry.value.val_f64 = native.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
        else:
            entry.tag, entry.value.val_str = native.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()
    return made


def _importance(flat: Mapping[str, NDArray[np.float32]]) -> ctypes.Array[Any]:
    """An array that ends with an entry without a name; it points into `flat`, which must outlive it."""
    made: ctypes.Array[Any] = (native.llama_model_imatrix_data * (len(flat) + 1))()
    for entry, (name, values) in zip(made, flat.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return made


def _contiguous(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
