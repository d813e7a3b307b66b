"""From the types a dry run gives the tensors to the plan of a level: exact file size, bits, fallbacks, faults.

Pure functions in child processes; the layout is that of gguf.cpp's writer as llama-quant.cpp uses it. Knows nothing
of how the types were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from service.domain.catalog import LevelPlan
from service.domain.quants import GGML_TYPES, Family, Quantization
from service.gguf.files import dimensions, ranked
from service.gguf.header import DEFAULT_ALIGNMENT, Header, padded, tensor_bytes, weights
from service.quantization.log import DryRun

_FILE_TYPE_KEY = "general.file_type"
_VERSION_KEY = "general.quantization_version"
_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_BLOCK_WEIGHTS = {ggml.name: ggml.block_weights for ggml in GGML_TYPES.values()}
_EMBEDDING = "token_embd.weight"
_OUTPUT = "output.weight"


def level_plan(header: Header, level: Quantization, run: DryRun) -> LevelPlan:
    """The plan of `level` for a model with this header, from what its dry run said."""
    reason = _not_what_it_says(level, run)
    if reason is not None:
        return refused(level.label, reason)
    size_bytes = file_bytes(header, run.types)
    data_bytes = sum(tensor_bytes(tensor.shape, run.types[tensor.name]) for tensor in header.tensors)
    return LevelPlan(
        quantization=level.label,
        size_bytes=size_bytes,
        bits_per_weight=data_bytes * 8 / sum(weights(tensor.shape) for tensor in header.tensors),
        needs_imatrix=run.needs_imatrix,
        fallbacks=(*_shared_fallback(header, level, run), *run.fallbacks),
        types=ranked(Counter(run.types.values())),
    )


def file_bytes(header: Header, types: Mapping[str, str]) -> int:
    """Exact size of the file llama.cpp's quantizer writes from this header with these tensor types.

    It writes version 3 with its own alignment of 32, sets the file type and the quantization version, drops the keys
    of a split, drops trailing dimensions of one, and pads every tensor.
    """
    replaced = (_FILE_TYPE_KEY, _VERSION_KEY, *_SPLIT_KEYS)
    metadata = 4 + 4 + 8 + 8
    metadata += sum(pair.written_bytes for key, pair in header.pairs.items() if key not in replaced)
    metadata += sum(8 + len(key) + 4 + 4 for key in (_FILE_TYPE_KEY, _VERSION_KEY))
    data = 0
    for tensor in header.tensors:
        metadata += 8 + len(tensor.name.encode()) + 4 + 8 * dimensions(tensor.shape) + 4 + 8
        data += padded(tensor_bytes(tensor.shape, types[tensor.name]), DEFAULT_ALIGNMENT)
    return padded(metadata, DEFAULT_ALIGNMENT) + data


def refused(label: str, reason: str) -> LevelPlan:
    """The plan of a level that cannot be made."""
    return LevelPlan(quantization=label, size_bytes=0, bits_per_weight=0.0, needs_imatrix=False, error=reason)


def _not_what_it_says(level: Quantization, run: DryRun) -> str | None:
    """Why the result would not deserve the level's name: no tensor gets its type, and no shape explains it."""
    if level.base_type in run.types.values():
        return None
    if level.family is Family.MICROSCALING:
        return (
            f"No tensor of this model would become {level.base_type}: {level.label} is for mixture-of-experts models "
            "and makes a Q8_0 file of any other. Choose Q8_0, or a 4-bit level such as Q4_K_M."
        )
    if run.fallbacks:
        return None  # said tensor by tensor in the plan
    return f"No tensor of this model would become {level.base_type}. Choose another level."


def _shared_fallback(header: Header, level: Quantization, run: DryRun) -> tuple[str, ...]:
    """The tensor of the output, where llama.cpp falls back to Q8_0 for its shape without a word in the log."""
    name = _OUTPUT if _OUTPUT in run.types else _EMBEDDING
    shared = next((tensor for tensor in header.tensors if tensor.name == name), None)
    if shared is None or level.base_type == "Q8_0" or run.types[name] != "Q8_0":
        return ()
    return (name,) if shared.shape[0] % _BLOCK_WEIGHTS[level.base_type] else ()
