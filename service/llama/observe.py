"""Watching a graph as it is computed: what each weight is multiplied with, as numpy views.

Child processes only, on the thread that decodes. An instance is the `observer` of a WindowContext. What the inputs are
good for is its caller's business.
"""

from __future__ import annotations

import ctypes
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InternalError
from service.llama.tensors import Tensor

# Below this a product is taken for token generation, which uses other kernels; llama-imatrix leaves it out as well.
_SMALLEST_BATCH = 16
_FLOAT32 = 0  # GGML_TYPE_F32
_INT32 = 26  # GGML_TYPE_I32
_NO_OP = 0  # GGML_OP_NONE: an input of the graph, which no node computes
_NUMBER_BYTES = 4

_Number = TypeVar("_Number", np.float32, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class MatrixInput:
    """The input of one matrix product with the weight named `weight`; the arrays are valid during the call only.

    Dense: `values` is (outer, stacked, tokens, columns), and its matrix at (i, j) meets the weight's at
    (i % stack[0], j % stack[1]). With experts: `values` is (1, tokens, slots, columns), slots being 1 when all experts
    of a token get the same, and `experts` (tokens, used) says which of the stack[1] experts it went to.
    `repeated` says that arrays and experts are those of the call before: only the weight is another.
    """

    weight: str
    values: NDArray[np.float32]
    experts: NDArray[np.int32] | None
    stack: tuple[int, int]
    repeated: bool

    @property
    def tokens(self) -> int:
        """How many tokens went in, if the product is one over tokens."""
        outer, stacked, rows, _ = self.values.shape
        return len(self.experts) if self.experts is not None else outer * stacked * rows


class MatrixInputs:
    """An observer that hands the inputs of products with wanted weights to a function, in the order of the graph."""

    def __init__(self, wants: Callable[[str], bool], take: Callable[[MatrixInput], None]) -> None:
        """`wants` says by a weight's name whether `take` is to get its inputs."""
        self._wants = functools.cache(wants)
        self._take = take
        self._product, self._expert_product = _operation(b"MUL_MAT"), _operation(b"MUL_MAT_ID")
        self._failure: Exception | None = None
        self._last_inputs: tuple[int, int] | None = None  # addresses of values and experts, while they hold
        self._tokens: Counter[str] = Counter()
        self._last_weight = ""
        self._end: str | None = None

    def __call__(self, address: int, ask: bool, _user_data: object) -> bool:
        """llama.cpp's callback: `ask` before a node is computed, then again for those that were asked for.

        False stops this graph. No exception leaves it, as none may unwind through C; `check` raises it.
        """
        if self._failure is not None:
            return False
        try:
            if ask:
                return self._is_wanted(address)
            name = self._show(Tensor.from_address(address))
        except Exception as error:
            self._failure = error
            return False
        return name != self._end

    def check(self) -> None:
        """Raise what went wrong since the last call. To be called after every decode."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def end_after_last(self, tokens: int) -> None:
        """After the first decode, of so many tokens: leave out what follows the last wanted weight from now on.

        That is the output matrix, often a fifth of the work, when it is not wanted itself; its results are then no
        results. Nothing is left out when the last weight is multiplied more than once in a graph.
        """
        if self._last_weight and self._tokens[self._last_weight] == tokens:
            self._end = self._last_weight

    def _is_wanted(self, address: int) -> bool:
        if self._last_inputs is not None and address in self._last_inputs:
            self._last_inputs = None  # they are about to be computed anew: this is the next graph
        node = Tensor.from_address(address)
        if node.op not in (self._product, self._expert_product):
            return False
        weight, values = node.src[0].contents, node.src[1].contents
        if values.type != _FLOAT32:
            return False
        if node.op == self._product and values.ne[1] < _SMALLEST_BATCH:
            return False
        return self._wants(_weight_name(weight.name))

    def _show(self, node: Tensor) -> str:
        weight, values = node.src[0].contents, node.src[1].contents
        has_experts = node.op == self._expert_product
        inputs = (ctypes.addressof(values), ctypes.addressof(node.src[2].contents) if has_experts else 0)
        name = _weight_name(weight.name)
        shown = MatrixInput(
            weight=name,
            values=_array(values, _FLOAT32, np.float32),
            experts=_array(node.src[2].contents, _INT32, np.int32)[0, 0] if has_experts else None,
            stack=(weight.ne[3], weight.ne[2]),
            repeated=inputs == self._last_inputs,
        )
        self._take(shown)
        # An input of the graph is not announced when it changes.
        self._last_inputs = inputs if values.op != _NO_OP else None
        self._last_weight = name
        if self._end is None:
            self._tokens[name] += shown.tokens
        return name


@functools.cache
def _library() -> Any:
    library = native._lib
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_op_name.argtypes = (ctypes.c_int,)
    library.ggml_backend_buffer_is_host.restype = ctypes.c_bool
    library.ggml_backend_buffer_is_host.argtypes = (ctypes.c_void_p,)
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    return library


def _operation(name: bytes) -> int:
    """The number of an operation in this build."""
    for number in range(64):  # of about a hundred
        if _library().ggml_op_name(number) == name:
            return number
    raise InternalError(f"This build of llama.cpp has no operation {name.decode()}.")


@functools.cache
def _weight_name(name: bytes) -> str:
    """A tensor's name without the device and the copy that a scheduler adds: `CUDA0#blk.0.attn_k.weight#0`."""
    text = name.decode("utf-8", "replace")
    parts = text.split("#", 2)
    return parts[1] if len(parts) > 1 else text


def _array(tensor: Tensor, type_number: int, kind: type[_Number]) -> NDArray[_Number]:
    """A tensor's values as (ne[3], ne[2], ne[1], ne[0]): a view of host memory, or a copy from a device."""
    if tensor.type != type_number or tensor.nb[0] != _NUMBER_BYTES:
        raise InternalError(f"The tensor {tensor.name!r} is not of the type that a product's input has.")
    size_bytes = _NUMBER_BYTES + sum((tensor.ne[axis] - 1) * tensor.nb[axis] for axis in range(4))
    buffer = tensor.buffer or (tensor.view_src.contents.buffer if tensor.view_src else None)
    if buffer is None or _library().ggml_backend_buffer_is_host(buffer):
        memory = (ctypes.c_char * size_bytes).from_address(tensor.data)
    else:
        memory = (ctypes.c_char * size_bytes)()
        _library().ggml_backend_tensor_get(ctypes.addressof(tensor), memory, 0, size_bytes)
    shape = tuple(tensor.ne[axis] for axis in (3, 2, 1, 0))
    strides = tuple(tensor.nb[axis] for axis in (3, 2, 1, 0))
    return np.ndarray(shape, dtype=kind, buffer=memory, strides=strides)
