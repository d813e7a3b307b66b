"""How the tensors of a checkpoint become those of a GGUF file: one rule for each, applied while rows are read.

Runs in job children. Rules are values: nothing is read before `Weights.read` is called, and then no more than the rows
asked for (whole heads, where rows change places). Knows no architecture and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidModel
from service.gguf.checkpoints import Tensor
from service.gguf.fields import Field

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weights:
    """A tensor as it is going to be written.

    `shape` is row-major (GGUF writes it backwards). `read(start, stop)` gives float32 rows of the last axis, the others
    taken as one: (stop - start, shape[-1]). It raises InvalidModel.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[int, int], Floats]
    dtype: str = "F32"  # of the checkpoint

    @property
    def rows(self) -> int:
        """How many rows `read` knows."""
        return math.prod(self.shape[:-1])

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Change = Callable[[Weights], Weights]


@dataclass(frozen=True, slots=True)
class Rule:
    """`source`, which has `shape` (row-major), becomes `target`. Several sources are stacked, as experts are.

    `optional`: it may be missing from the checkpoint.
    """

    target: str
    source: str | tuple[str, ...]
    shape: tuple[int, ...]
    change: Change | None = None
    optional: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """All names in the checkpoint."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint becomes: the architecture as llama.cpp names it, its fields, and a rule for each tensor.

    `renamed` gives the name that the rules know a tensor of the checkpoint by, None for one that is left out.
    `computed` tensors are not in the checkpoint. With `trims_vocabulary` the embedding loses the rows of no token.
    """

    architecture: str
    vocabulary: int  # rows of the embedding
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    renamed: Callable[[str], str | None]
    computed: tuple[Weights, ...] = ()
    trims_vocabulary: bool = False


def apply(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[Weights, ...]:
    """The tensors of the file, in its order.

    Raises InvalidModel for tensors that are missing, of another shape than the configuration says, or not known.
    """
    known: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = layout.renamed(name)
        if new is None:
            continue
        if new in known:
            raise InvalidModel(f"The checkpoint holds {new[:80]!a} twice, under two names.")
        known[new] = tensor
    placed = list(layout.computed)
    for rule in layout.rules:
        found = [known.pop(source) for source in rule.sources if source in known]
        if not found and rule.optional:
            continue
        if len(found) != len(rule.sources):
            missing = next(source for source in rule.sources if source not in tensors)
            raise InvalidModel(f"The checkpoint has no tensor {missing[:80]!a}; download it again.")
        placed.append(_placed(rule, found))
    if known:
        raise InvalidModel(
            f"The checkpoint holds {next(iter(known))[:80]!a}, which is no part of a {layout.architecture} model as "
            "quantry knows it; a model that was changed this way cannot be converted."
        )
    return tuple(placed)


def _placed(rule: Rule, found: list[Tensor]) -> Weights:
    for tensor in found:
        if tensor.shape != rule.shape:
            raise InvalidModel(
                f"The tensor {tensor.name[:80]!a} is {_times(tensor.shape)}, where config.json makes it "
                f"{_times(rule.shape)}; download the checkpoint again."
            )
        if tensor.dtype not in _FLOATS:
            raise InvalidModel(
                f"The tensor {tensor.name[:80]!a} holds whole numbers ({tensor.dtype}), not weights; the checkpoint is "
                "quantized in a way that quantry does not know. Take one in BF16, F16 or F32."
            )
    weights = _stacked(rule.target, found) if len(rule.sources) > 1 else _as_is(rule.target, found[0])
    return weights if rule.change is None else rule.change(weights)


_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


def _as_is(name: str, tensor: Tensor) -> Weights:
    shape = tensor.shape or (1,)
    if len(shape) == 1:
        return Weights(
            name, shape, lambda start, stop: tensor.read(0, shape[0]).reshape(1, -1)[start:stop], tensor.dtype
        )
    if len(shape) == 2:
        return Weights(name, shape, tensor.read, tensor.dtype)
    inner = math.prod(shape[1:-1])

    def read(start: int, stop: int) -> Floats:
        first, last = start // inner, -(-stop // inner)
        rows = tensor.read(first, last).reshape(-1, shape[-1])
        return rows[start - first * inner : stop - first * inner]

    return Weights(name, shape, read, tensor.dtype)


def _stacked(name: str, tensors: list[Tensor]) -> Weights:
    """Matrices of one shape, as one tensor with a new first axis."""
    height, width = tensors[0].shape

    def read(start: int, stop: int) -> Floats:
        blocks = []
        while start < stop:
            number, row = divmod(start, height)
            end = min(height, row + stop - start)
            blocks.append(tensors[number].read(row, end))
            start += end - row
        return np.concatenate(blocks)

    return Weights(name, (len(tensors), height, width), read, tensors[0].dtype)


def constant(name: str, values: NDArray[Any] | list[float]) -> Weights:
    """A vector that is computed, not read."""
    row = np.asarray(values, np.float32).reshape(1, -1)
    return Weights(name, (row.size,), lambda start, stop: row[start:stop])


# --- changes -----------------------------------------------------------------------------------------------------


def plus_one(weights: Weights) -> Weights:
    """Gemma's norms multiply by 1 + w."""
    return replace(weights, read=lambda start, stop: weights.read(start, stop) + np.float32(1))


def interleaved(heads: int) -> Change:
    """Rows of each head in the order that llama.cpp rotates them in: pairs of neighbours.

    transformers rotates row i with row i + d/2 of a head of d rows; llama.cpp's Llama rotates 2i with 2i + 1.
    """

    def change(weights: Weights) -> Weights:
        if len(weights.shape) == 1:  # a bias is one row, of all heads
            return replace(weights, read=lambda start, stop: _pairs(weights.read(0, 1)[0], heads)[None][start:stop])
        length = weights.shape[0] // heads

        def read(start: int, stop: int) -> Floats:
            first, last = start // length, -(-stop // length)
            rows = _pairs(weights.read(first * length, last * length), last - first)
            return rows[start - first * length : stop - first * length]

        return replace(weights, read=read)

    return change


def _pairs(rows: Floats, heads: int) -> Floats:
    if not rows.size:
        return rows
    length = rows.shape[0] // heads
    return rows.reshape(heads, 2, length // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def without_first_rows(count: int) -> Change:
    """A matrix less its first `count` rows."""
    return lambda weights: replace(
        weights,
        shape=(weights.shape[0] - count, *weights.shape[1:]),
        read=lambda start, stop: weights.read(start + count, stop + count),
    )


def first_rows(weights: Weights, count: int) -> Weights:
    """The first `count` rows of a matrix."""
    return replace(weights, shape=(count, *weights.shape[1:]))


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
