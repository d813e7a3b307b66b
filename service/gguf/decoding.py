"""The types of numbers in safetensors, as numpy has them: floats as float32, whole numbers as they are.

Runs in job children. Types of 8 bits are looked up in tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def decoded(raw: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Bytes of one of safetensors' types as an array of one dimension; exact but for F64, which is rounded."""
    return _DECODERS[dtype](raw)


def _as(dtype: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda raw: raw.view(dtype)


def _float(dtype: str) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    def read(raw: NDArray[np.uint8]) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # who writes them refuses infinities
            return raw.view(dtype).astype(np.float32)

    return read


def _bfloat16(raw: NDArray[np.uint8]) -> NDArray[Any]:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _looked_up(table: NDArray[np.float32]) -> Callable[[NDArray[np.uint8]], NDArray[Any]]:
    return lambda raw: table[raw]


def _e4m3() -> NDArray[np.float32]:
    """OCP 8-bit floating point, E4M3: bias 7, no infinities, NaN where all bits but the sign are set."""
    codes = np.arange(256)
    exponent, fraction = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


def _e5m2() -> NDArray[np.float32]:
    """OCP 8-bit floating point, E5M2: the upper half of an IEEE half."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)


def _e8m0() -> NDArray[np.float32]:
    """OCP 8-bit scale: a power of two, bias 127, NaN at the top."""
    scales = np.exp2(np.arange(256, dtype=np.float64) - 127)
    scales[255] = np.nan
    return scales.astype(np.float32)


_DECODERS: dict[str, Callable[[NDArray[np.uint8]], NDArray[Any]]] = {
    "BOOL": _as("u1"),
    "U8": _as("u1"),
    "I8": _as("i1"),
    "U16": _as("<u2"),
    "I16": _as("<i2"),
    "U32": _as("<u4"),
    "I32": _as("<i4"),
    "U64": _as("<u8"),
    "I64": _as("<i8"),
    "F32": _as("<f4"),
    "F16": _float("<f2"),
    "F64": _float("<f8"),
    "BF16": _bfloat16,
    "F8_E4M3": _looked_up(_e4m3()),
    "F8_E5M2": _looked_up(_e5m2()),
    "F8_E8M0": _looked_up(_e8m0()),
}
