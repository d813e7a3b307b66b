"""llama.cpp's quantizer: one GGUF file to another."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import llama_cpp.llama_cpp as native

from service.domain.errors import QuantizationFailed
from service.llama.backend import ErrorLines, listening_to_log, start_backend


def quantize_model(
    source: Path,
    target: Path,
    *,
    file_type: int,
    allow_requantize: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    on_log: Callable[[str], None] | None = None,
) -> None:
    """Run llama.cpp's quantizer from one GGUF file to another; `file_type` is a `llama_ftype`.

    `on_log` gets each piece of the log as it comes, `[ n/ m] name ...` among it: the library has no other
    progress. `dry_run` writes nothing and logs what each tensor would become. `threads` 0 means all cores.
    Raises QuantizationFailed with llama.cpp's own reason.
    """
    start_backend()
    params = native.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.allow_requantize = allow_requantize
    params.dry_run = dry_run
    errors = ErrorLines()

    def listener(level: int, text: str) -> None:
        errors(level, text)
        if on_log is not None:
            on_log(text)

    with listening_to_log(listener):
        status = native.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise QuantizationFailed(f"llama.cpp did not quantize the model: {errors.reason()}.")
