"""ggml's tensors as the binding leaves them out: their layout in memory, and what a running graph shows of itself.

Child processes only. The layout is that of ggml.h in the llama.cpp of pyproject.toml's pin; `check_layout` compares
what it reads with what the file's header says, so that another build is refused and not misread.
"""

from __future__ import annotations

import ctypes

_MAX_DIMENSIONS = 4
_MAX_OP_PARAMS = 64 // 4
_MAX_SOURCES = 10
_MAX_NAME = 64


class Tensor(ctypes.Structure):
    """`struct ggml_tensor`. `ne` are elements and `nb` strides in bytes, row first."""


Tensor._fields_ = [
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * _MAX_DIMENSIONS),
    ("nb", ctypes.c_size_t * _MAX_DIMENSIONS),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * _MAX_OP_PARAMS),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(Tensor) * _MAX_SOURCES),
    ("view_src", ctypes.POINTER(Tensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * _MAX_NAME),
    ("extra", ctypes.c_void_p),
    ("padding", ctypes.c_char * 8),
]
