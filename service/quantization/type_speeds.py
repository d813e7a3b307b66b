"""How fast each type computes on this machine: levels of one type alone, made from the source and timed.

Child processes. In such a level all matrices have one type, so a mix takes the mean of their seconds for a token,
weighted by the weights that a token passes through: what is no matrix work is in each of them, and so in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.catalog import TensorInfo
from service.domain.quants import UNQUANTIZED_TYPES
from service.domain.recipes import Recipe
from service.gguf.header import Header
from service.llama.probe import load_on_processor
from service.llama.quantizer import quantize_model
from service.quantization.choices import Choices, level_of
from service.quantization.speed import measure_speed

_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"


def type_seconds(
    source: Path,
    header: Header,
    types: Iterable[str],
    importance: Mapping[str, NDArray[np.float32]] | None,
    scratch: Path,
    *,
    threads: int,
    progress: Callable[[float, str], None],
) -> dict[str, float]:
    """Seconds for one generated token with every matrix at each of these types; the files at `scratch` are removed.

    Raises what making and loading a level raises.
    """
    wanted = list(types)
    found: dict[str, float] = {}
    for number, kind in enumerate(wanted):
        progress(number / len(wanted), f"speed of {kind}")
        try:
            if _is_already(header, kind):
                path = source
            else:
                recipe = Recipe(level_of(kind), pure=True, allow_requantize=True)
                quantize_model(source, scratch, recipe, importance=importance, threads=threads)
                path = scratch
            model = load_on_processor(path)
            try:
                found[kind] = 1.0 / measure_speed(model, threads=threads).generation_tokens_per_second
            finally:
                model.close()
        finally:
            scratch.unlink(missing_ok=True)
    return found


def tensor_seconds(header: Header, choices: Choices, seconds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Each tensor's part of the seconds that a token takes, by type. Pure.

    A token passes through all weights of a matrix, of expert matrices only through those of the experts in use, and
    reads one row of an embedding that is not the output as well. Tensors outside the choices take no part: their time
    is in every type's seconds.
    """
    used = _experts_share(header)
    tied = not any(tensor.name == _OUTPUT for tensor in header.tensors)
    work = {
        name: 0.0 if name == _EMBEDDING and not tied else math.prod(shape) * (used if len(shape) > 2 else 1.0)
        for name, shape in choices.shapes.items()
    }
    total = sum(work.values()) or 1.0
    return {
        name: {kind: seconds[kind] * work[name] / total for kind in sizes} for name, sizes in choices.options.items()
    }


def _experts_share(header: Header) -> float:
    count = header.whole(f"{header.architecture}.expert_count") or 0
    used = header.whole(f"{header.architecture}.expert_used_count") or 0
    return used / count if count and used else 1.0


def _is_already(header: Header, kind: str) -> bool:
    matrices: list[TensorInfo] = [tensor for tensor in header.tensors if tensor.type not in UNQUANTIZED_TYPES]
    return bool(matrices) and all(tensor.type == kind for tensor in matrices)
