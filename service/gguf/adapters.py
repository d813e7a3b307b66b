"""LoRA adapters in GGUF: what llama.cpp needs them to be, checked against the header of their base model.

Runs in job children, on files that a stranger chose. llama.cpp compares two of four extents of a pair of tensors with
those of the weights they belong to, and trusts the types of the pairs; whatever it leaves out would end the process in
the middle of a batch. Nothing but InvalidModel escapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.domain.catalog import AdapterFacts, TensorInfo
from service.domain.errors import InvalidModel
from service.gguf.files import facts, read_header
from service.gguf.header import Header, weights

ALPHA = "adapter.lora.alpha"
ADAPTER_TYPE = "adapter.type"
KIND = "general.type"
EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
MAX_RANK = 16_384

_ALORA = "adapter.alora.invocation_tokens"
_PART = re.compile(r"(?P<base>.+)\.lora_(?P<side>[ab])")
_NORM = "_norm.weight"  # llama.cpp steps over these
# What convert_lora_to_gguf.py writes: all are read by the row and multiplied by every backend.
_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0"})
_Q8_0_BLOCK_BYTES = 34
_CHUNK_BYTES = _Q8_0_BLOCK_BYTES * 128 * 1024  # no value and no block is cut


def read_adapter(path: Path, base: Header) -> tuple[Header, AdapterFacts]:
    """The header of an adapter for the model that `base` is the header of. Raises InvalidModel."""
    header = read_header(path, _check_kind)
    return header, check_adapter(header, base)


def check_adapter(header: Header, base: Header) -> AdapterFacts:
    """What a validated header says of an adapter that fits `base`. Raises InvalidModel. Pure."""
    _check_kind(header)
    if header.architecture != base.architecture:
        raise InvalidModel(
            f"The adapter is for models of the architecture {header.architecture[:40]!a}, and this one is "
            f"{base.architecture}; name the model that it was trained on.",
            param="model",
        )
    alpha = _alpha(header)
    ranks = {_rank(name, a, b, base) for name, (a, b) in pairs_of(header.tensors).items()}
    if not ranks:
        raise InvalidModel("The adapter changes no weights; get its file again.")
    used = [tensor for tensor in header.tensors if not tensor.name.endswith(_NORM)]
    return AdapterFacts(
        architecture=header.architecture,
        rank=max(ranks),
        alpha=alpha,
        tensors=len(used),
        parameters=sum(weights(tensor.shape) for tensor in used),
        general_name=facts(header).general_name,
    )


def pairs_of(tensors: tuple[TensorInfo, ...]) -> Mapping[str, tuple[TensorInfo, TensorInfo]]:
    """The factors A and B by the name of the weights that they belong to. Raises InvalidModel for what is neither."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for tensor in tensors:
        part = _PART.fullmatch(tensor.name)
        if part is None:
            if tensor.name.endswith(_NORM):
                continue
            raise InvalidModel(
                f"The tensor {tensor.name!a} of the adapter is no factor of a low-rank product (.lora_a, .lora_b), "
                "which is all that is carried out; get an adapter that has only such."
            )
        sides.setdefault(part["base"], {})[part["side"]] = tensor
    for name, found in sides.items():
        if len(found) != 2:
            raise InvalidModel(f"The adapter has one of two factors for {name!a}; it is incomplete, get it again.")
    return {name: (found["a"], found["b"]) for name, found in sides.items()}


def check_values(path: Path, header: Header, progress: Callable[[float], None]) -> None:
    """Read all values; `progress` runs to 1. Raises InvalidModel for one that is no finite number, OSError."""
    total = sum(tensor.size_bytes for tensor in header.tensors)
    done = 0
    with path.open("rb") as file:
        for tensor, offset in zip(header.tensors, header.offsets, strict=True):
            if tensor.type not in _FINITE:
                continue
            is_finite = _FINITE[tensor.type]
            for chunk in _chunks(file, header.data_offset + offset, tensor.size_bytes):
                if not is_finite(chunk):
                    raise InvalidModel(
                        f"The tensor {tensor.name!a} of the adapter holds values that are no finite numbers: its "
                        "training has failed, or the file is damaged. Get another one."
                    )
                done += len(chunk)
                progress(done / total)


def _check_kind(header: Header) -> None:
    """Everything that llama.cpp reads before it looks at the tensors, with the types that it takes for granted."""
    for key in (KIND, ADAPTER_TYPE, "general.architecture"):
        pair = header.pairs.get(key)
        if pair is not None and pair.type != "str":
            raise InvalidModel(f"{key} has the type {pair.type}, not str; the file is corrupt.")
    kind = header.text(KIND)
    if kind != "adapter":
        said = f"it says {kind[:40]!a}" if kind else "it does not say so (general.type)"
        raise InvalidModel(f"The file is no adapter: {said}. A model is imported under a name of its own.")
    found = header.text(ADAPTER_TYPE)
    if found != "lora":
        raise InvalidModel(
            f"The adapter is of the kind {(found or '')[:40]!a}, and LoRA adapters are carried out; get one of those."
        )
    if _ALORA in header.pairs:
        raise InvalidModel("The adapter works only after certain tokens (aLoRA), which is not carried out here.")


def _alpha(header: Header) -> float:
    """The adapter's alpha: the product counts alpha / rank times. 0, or none at all, is the same as the rank."""
    pair = header.pairs.get(ALPHA)
    if pair is None:
        return 0.0
    if pair.type != "f32" or not isinstance(pair.value, float) or not math.isfinite(pair.value):
        raise InvalidModel(f"{ALPHA} is no finite number of type f32; the file is corrupt, get it again.")
    return pair.value


def _rank(name: str, a: TensorInfo, b: TensorInfo, base: Header) -> int:
    """The rank of a pair that fits the weights `name` of `base`. Shapes are in ggml's order: row length first."""
    target = next((tensor for tensor in base.tensors if tensor.name == name), None)
    if target is None:
        raise _no_weights(name, base)
    for tensor in (a, b):
        if tensor.type not in _TYPES:
            raise InvalidModel(
                f"The tensor {tensor.name!a} of the adapter has the type {tensor.type}; {', '.join(sorted(_TYPES))} "
                "are taken. Convert the adapter again."
            )
    shape = _matrices(target.shape)
    rank = _matrices(b.shape)[0]
    columns, rows, *rest = shape
    # llama.cpp looks rows of A up for the tokens of an embedding, instead of multiplying with it.
    flipped = (rank, rows), (rank, columns)
    expected = flipped if name == EMBEDDING else ((columns, rank, *rest), (rank, rows, *rest))
    if (_matrices(a.shape), _matrices(b.shape)) != expected or len(target.shape) < 2:
        raise InvalidModel(
            f"The adapter's factors for {name!a} have the shapes {list(a.shape)} and {list(b.shape)}, which do not fit "
            f"weights of {list(target.shape)}; name the model that it was trained on.",
            param="model",
        )
    if rank > MAX_RANK:
        raise InvalidModel(f"The adapter has the rank {rank}; at most {MAX_RANK} is taken.")
    if name == EMBEDDING and all(tensor.name != OUTPUT for tensor in base.tensors):
        raise InvalidModel(
            "The adapter changes the embedding of tokens, which this model also takes for its output; llama.cpp cannot "
            "do one without the other. Merge the adapter into the model, and import the result.",
            param="model",
        )
    return rank


def _no_weights(name: str, base: Header) -> InvalidModel:
    if name == OUTPUT:
        return InvalidModel(
            "The adapter changes the output weights, and this model has none of its own: it takes the embedding of "
            "tokens. Merge the adapter into the model, and import the result.",
            param="model",
        )
    return InvalidModel(
        f"The adapter changes the weights {name!a}, which this {base.architecture} model does not have; name the model "
        "that it was trained on.",
        param="model",
    )


def _matrices(shape: tuple[int, ...]) -> tuple[int, ...]:
    """At least two extents, and no trailing ones after them: as ggml sees it."""
    padded = [*shape, 1] if len(shape) == 1 else list(shape)
    while len(padded) > 2 and padded[-1] == 1:
        padded.pop()
    return tuple(padded)


def _chunks(file: BinaryIO, offset: int, size_bytes: int) -> Iterator[bytes]:
    file.seek(offset)
    left = size_bytes
    while left:
        chunk = file.read(min(_CHUNK_BYTES, left))
        if len(chunk) < min(_CHUNK_BYTES, left):
            raise InvalidModel("The adapter's file was cut short while it was read; bring it again.")
        yield chunk
        left -= len(chunk)


def _finite_f32(chunk: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(chunk, "<f4")).all())


def _finite_f16(chunk: bytes) -> bool:
    return bool(np.isfinite(np.frombuffer(chunk, "<f2")).all())


def _finite_bf16(chunk: bytes) -> bool:
    exponents = np.frombuffer(chunk, "<u2") & np.uint16(0x7F80)
    return not bool((exponents == 0x7F80).any())


def _finite_q8_0(chunk: bytes) -> bool:
    blocks = np.frombuffer(chunk, np.uint8).reshape(-1, _Q8_0_BLOCK_BYTES)
    return _finite_f16(blocks[:, :2].tobytes())


_FINITE: dict[str, Callable[[bytes], bool]] = {
    "F32": _finite_f32,
    "F16": _finite_f16,
    "BF16": _finite_bf16,
    "Q8_0": _finite_q8_0,
}
