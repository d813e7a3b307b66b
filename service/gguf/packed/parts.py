"""What all packed formats share: finding the parts of a tensor, checking them, and multiplying out groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor

DTYPE = "F16"
"""What unpacked tensors say they are: no packed format holds more than half precision."""

MAX_EXTENT = 2**24
_BLOCK_WEIGHTS = 2**20  # multiplied out at a time
_FLOATS = frozenset({"F16", "BF16", "F32"})

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Tensors as an unquantized checkpoint has them; `description` is None when none of them was packed."""

    tensors: Mapping[str, Tensor]
    description: str | None


def replaced(tensors: Mapping[str, Tensor], made: Mapping[str, Tensor], dropped: Iterable[str]) -> dict[str, Tensor]:
    """All tensors but the `dropped` ones; each key of `made` names the packed one whose place its value takes."""
    gone = set(dropped) - set(made)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in gone:
            continue
        new = made.get(name, tensor)
        if new.name in result or (new.name != name and new.name in tensors and new.name not in made):
            raise InvalidModel(f"{shown(new.name)} is there twice, packed and as it is; download the checkpoint again.")
        result[new.name] = new
    return result


def part(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor that belongs to a packed one."""
    found = tensors.get(name)
    if found is None:
        raise InvalidModel(f"The checkpoint has no {shown(name)}, which a packed tensor needs; download it again.")
    return found


def check(tensor: Tensor, dtypes: Iterable[str], shape: tuple[int, ...]) -> None:
    """Refuse another type or shape."""
    if tensor.dtype not in dtypes or tensor.shape != shape:
        raise InvalidModel(
            f"{shown(tensor.name)} is {tensor.dtype} {list(tensor.shape)} where {' or '.join(sorted(dtypes))} "
            f"{list(shape)} belongs; the checkpoint is corrupt, or not what its configuration says."
        )


def check_floats(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse what is no float, or has another shape."""
    check(tensor, _FLOATS, shape)


def check_extents(name: str, *extents: int) -> None:
    """Refuse what no matrix of a model has."""
    if min(extents) < 1 or max(extents) > MAX_EXTENT:
        raise InvalidModel(f"{shown(name)} would be {list(extents)}, which no model's is; the checkpoint is corrupt.")


def finite(values: Floats, name: str) -> Floats:
    """The same values, none of them infinite or NaN."""
    if not np.isfinite(values).all():
        raise InvalidModel(f"{shown(name)} holds values that are no numbers; the checkpoint is corrupt.")
    return values


def in_blocks(start: int, stop: int, width: int) -> Iterator[tuple[int, int]]:
    """Rows `start` to `stop` of `width` numbers, some at a time: what is worked on stays within memory bounds."""
    step = max(1, _BLOCK_WEIGHTS // max(1, width))
    for begin in range(start, stop, step):
        yield begin, min(stop, begin + step)


def by_blocks(width: int, block: Callable[[int, int], Floats]) -> Callable[[int, int], Floats]:
    """A reader of rows that are `width` long, out of one for a block of them."""

    def read(start: int, stop: int) -> Floats:
        rows = np.empty((stop - start, width), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # who writes them refuses infinities
            for begin, end in in_blocks(start, stop, width):
                rows[begin - start : end - start] = block(begin, end)
        return rows

    return read


def multiplied(codes: NDArray[np.uint8], zeros: Floats, scales: Floats, groups: NDArray[np.intp] | int) -> Floats:
    """(code - zero) * scale, with codes (rows, columns) and the others (rows, groups).

    `groups` is the group of each column, or how many neighbouring columns share one.
    """
    values = codes.astype(np.float32)
    if isinstance(groups, int):
        count = scales.shape[1]
        if count * groups == values.shape[1]:
            by_group = values.reshape(len(values), count, groups)
            by_group -= zeros[:, :, None]
            by_group *= scales[:, :, None]
            return values
        groups = np.arange(values.shape[1]) // groups
    values -= zeros[:, groups]
    values *= scales[:, groups]
    return values


def whole(config: Mapping[str, Any], *names: str) -> int | None:
    """The first whole number among these entries."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def word(config: Mapping[str, Any], *names: str) -> str | None:
    """The first text among these entries, in small letters."""
    for name in names:
        value = config.get(name)
        if isinstance(value, str):
            return value.lower()
    return None


def shown(name: str) -> str:
    """A name from the checkpoint for a message: short, quoted, escaped."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
