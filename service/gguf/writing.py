"""A GGUF file written tensor by tensor and block by block, hashed on the way.

Runs in job children. Memory stays that of the header and of one block, whatever the tensors' sizes. Knows the bytes of
a GGUF file (with `rewriting.py`), not what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.domain.catalog import TensorInfo
from service.domain.errors import InvalidModel
from service.gguf.architectures.rules import Floats, Weights
from service.gguf.fields import Field
from service.gguf.header import DEFAULT_ALIGNMENT, MAX_TENSOR_NAME_BYTES, padded
from service.gguf.rewriting import header_bytes, pair

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The types that are written, and the bytes of a number in each."""

_HALF_EXPONENT = np.uint16(0x7C00)  # all set: no finite number
_BLOCK_BYTES = 8 * 1024 * 1024  # of float32


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: "sha256:..." of the whole file, and its size."""

    digest: str
    size_bytes: int


class Plan:
    """A file that can be written, its size known beforehand."""

    def __init__(self, fields: Sequence[Field], tensors: Sequence[tuple[Weights, str]]) -> None:
        """`tensors` come with the type that each gets, a key of FLOAT_BYTES. Raises InvalidModel."""
        infos = []
        for weights, kind in tensors:
            if len(weights.name.encode()) > MAX_TENSOR_NAME_BYTES:
                raise InvalidModel(f"The tensor name {weights.name[:80]!a} is longer than GGUF allows.")
            infos.append(TensorInfo(weights.name, weights.shape[::-1], kind, weights.weights * FLOAT_BYTES[kind]))
        self._tensors = tuple(tensors)
        self._header = header_bytes([pair(field.key, field.type, field.value) for field in fields], infos)
        self.size_bytes = len(self._header) + sum(padded(info.size_bytes, DEFAULT_ALIGNMENT) for info in infos)

    def write(self, target: Path, progress: Callable[[float, str], None]) -> Written:
        """A new file at `target`, fsynced; `progress` hears shares and words. Raises InvalidModel, OSError."""
        hasher = hashlib.sha256()
        done = 0
        with target.open("xb", buffering=0) as output:
            descriptor = output.fileno()

            def put(data: bytes | memoryview) -> None:
                nonlocal done
                hasher.update(data)
                rest = memoryview(data).cast("B")
                done += len(rest)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]

            put(self._header)
            for weights, kind in self._tensors:
                step = max(1, _BLOCK_BYTES // (4 * max(1, weights.shape[-1])))
                for start in range(0, weights.rows, step):
                    rows = weights.read(start, min(start + step, weights.rows))
                    put(encoded(rows, kind, weights.name))
                    progress(done / self.size_bytes, f"{done} of {self.size_bytes} bytes")
                put(bytes(-weights.weights * FLOAT_BYTES[kind] % DEFAULT_ALIGNMENT))
            os.fsync(descriptor)
        assert done == self.size_bytes
        return Written(f"sha256:{hasher.hexdigest()}", done)


def encoded(rows: Floats, kind: str, name: str) -> memoryview:
    """float32 as the bytes of F32, F16 or BF16, to nearest, ties to even.

    Raises InvalidModel for what is no number, and for numbers that F16 cannot hold: llama.cpp's quantizer refuses both.
    """
    rows = np.ascontiguousarray(rows, "<f4")
    if not np.isfinite(rows).all():
        raise InvalidModel(f"The tensor {name[:80]!a} holds infinities or NaN; the checkpoint is damaged.")
    if kind == "F32":
        return rows.data
    if kind == "F16":
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        if (halves.view("<u2") & _HALF_EXPONENT == _HALF_EXPONENT).any():
            raise InvalidModel(
                f"The tensor {name[:80]!a} holds numbers beyond 65504, which F16 ends at; convert to BF16 or F32."
            )
        return halves.data
    words = rows.view("<u2").reshape(*rows.shape, 2)
    if not words[..., 0].any():  # it was BF16: nothing to round
        return np.ascontiguousarray(words[..., 1]).data
    bits = rows.view("<u4")
    upper: NDArray[np.uint16] = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return upper.data
