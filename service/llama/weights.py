"""Weights as ggml stores them: quantize rows and read them back, and overwrite those of a loaded model in place.

Child processes only. The functions of libggml-base are reached through libllama's own handle, as `backend.py` says.
Knows nothing of files: who calls it brings the rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.catalog import TensorInfo
from service.domain.errors import LoadFailed
from service.domain.quants import GGML_TYPES
from service.llama.backend import start_backend
from service.llama.model import Model
from service.llama.tensors import Tensor
from service.llama.windows import WindowContext

_IDS = {ggml.name: number for number, ggml in GGML_TYPES.items()}
_BLOCKS = {ggml.name: (ggml.block_weights, ggml.block_bytes) for ggml in GGML_TYPES.values()}
_FLOATS: dict[str, type[np.floating[Any]]] = {"F16": np.float16, "F32": np.float32}


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


def _library() -> Any:
    start_backend()
    library = native._lib
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    )
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    library.ggml_backend_tensor_set.restype = None
    library.ggml_backend_tensor_set.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return library


def quantize_rows(
    type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """Rows as ggml stores them in this type: shape (rows, bytes of a row), the bytes llama-quantize writes.

    `rows` has shape (rows, columns), whole blocks each; `importance` shape (columns,).
    """
    count, columns = rows.shape
    block_weights, block_bytes = _BLOCKS[type_name]
    assert columns % block_weights == 0
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    result = np.empty((count, columns // block_weights * block_bytes), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    assert weights is None or weights.shape == (columns,)
    written = _library().ggml_quantize_chunk(
        _IDS[type_name],
        rows.ctypes.data,
        result.ctypes.data,
        0,
        count,
        columns,
        None if weights is None else weights.ctypes.data,
    )
    assert written == result.nbytes
    return result


def dequantize_rows(type_name: str, data: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """The weights that stored rows stand for, shape (rows, columns); `data` has shape (rows, bytes of a row)."""
    if type_name in _FLOATS:
        return np.ascontiguousarray(data).view(_FLOATS[type_name]).astype(np.float32, copy=False)
    data = np.ascontiguousarray(data)
    result = np.empty((len(data), columns), dtype=np.float32)
    _library().ggml_get_type_traits(_IDS[type_name]).contents.to_float(
        data.ctypes.data, result.ctypes.data, result.size
    )
    return result


class LoadedWeights:
    """The matrices of a loaded model that its graph reads, to be overwritten. The model must be `writable`."""

    def __init__(self, model: Model, tensors: Iterable[TensorInfo], *, threads: int) -> None:
        """Find `tensors` by letting the model compute one token. What it does not read stays unknown.

        Raises LoadFailed when what is in memory is not what the file's header says.
        """
        self._model = model  # the addresses are those of its tensors
        self._infos = {tensor.name: tensor for tensor in tensors if tensor.type in _FLOATS}
        self._addresses = _seen(model, self._infos, threads)
        self._set = _library().ggml_backend_tensor_set

    @property
    def names(self) -> frozenset[str]:
        """The tensors that can be written."""
        return frozenset(self._addresses)

    def write(self, name: str, first_row: int, rows: NDArray[np.float32]) -> None:
        """Overwrite rows of a tensor from `first_row` on, counted through all experts; rounded to the tensor's type."""
        info = self._infos[name]
        values = np.ascontiguousarray(rows, dtype=_FLOATS[info.type])
        offset = first_row * info.shape[0] * values.itemsize
        assert offset + values.nbytes <= info.size_bytes
        for address in self._addresses[name]:
            self._set(address, values.ctypes.data, offset, values.nbytes)


def _seen(model: Model, infos: Mapping[str, TensorInfo], threads: int) -> dict[str, set[int]]:
    addresses: dict[str, set[int]] = {}
    strange: list[str] = []

    def observe(address: int, ask: bool, _user_data: int) -> bool:
        node = Tensor.from_address(address)
        for source in node.src:
            if not source:
                break
            name = source.contents.name.decode("utf-8", "replace")
            info = infos.get(name)
            if info is None or source.contents.op != 0:
                continue
            shape = tuple(source.contents.ne[: len(info.shape)])
            if source.contents.type != _IDS[info.type] or shape != info.shape:
                strange.append(name)
            addresses.setdefault(name, set()).add(ctypes.addressof(source.contents))
        return not ask  # to be shown nothing, and to go on

    context = WindowContext(model, window=8, sequences=1, threads=threads, observer=observe)
    try:
        tokens = np.array([max(model.bos_token, 0)], dtype=np.int32)
        context.decode([tokens], 0)
    finally:
        context.close()
    if strange:
        raise LoadFailed(f"The tensor {strange[0]!r} in memory is not the one of the file; this build is not the pin.")
    return addresses
