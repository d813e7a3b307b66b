"""Importance matrices as numbers: sums of squared activations by weight and input column, and what follows from them.

Child processes only. Pure numpy: how they are collected is `calibration.py`, how they lie in files
`importance_files.py`. Conventions are llama-imatrix's, so that its files and ours mean the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter
from service.domain.importance import ImportanceFacts, TensorStatistics
from service.gguf.files import dimensions
from service.gguf.header import Header

MAX_CHUNKS = 2**31 - 1
_ACTIVE_ABOVE = 1e-5
_BLOCK = re.compile(r"blk\.(\d{1,6})\.")
_NAMED_TENSORS = 3  # in an error message


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One tensor: `sums` of squares, float32 (experts, columns), over `counts` tokens, float32 (experts,).

    A tensor without experts has one row; all matrices of a stacked one lie in it, one after the other.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """An importance matrix: `chunks` windows of `chunk_tokens` tokens, of the texts named `datasets`."""

    entries: Mapping[str, Entry]
    chunks: int
    chunk_tokens: int
    datasets: tuple[str, ...]


def weights(importance: Importance) -> dict[str, NDArray[np.float32]]:
    """What the quantizer takes: mean squares of each tensor, flat float32 (experts * columns).

    Every column of an expert that saw no token weighs 1, as in llama-quantize.
    """
    return {name: _means(entry).ravel() for name, entry in importance.entries.items()}


def _means(entry: Entry) -> NDArray[np.float32]:
    counts = entry.counts[:, np.newaxis]
    means = np.ones_like(entry.sums)
    np.divide(entry.sums, counts, out=means, where=counts > 0)
    return means


# --- merging -----------------------------------------------------------------------------------------------------


def merge(matrices: Sequence[Importance]) -> Importance:
    """All of them as if their texts had been one; at least one is given. Chunks are counted in the first's size.

    Raises InvalidParameter, naming the tensors, when they are of different models.
    """
    first = matrices[0]
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.float64]] = {}
    wrong: list[str] = []
    for matrix in matrices:
        for name, entry in matrix.entries.items():
            if name not in sums:
                sums[name], counts[name] = entry.sums.astype(np.float64), entry.counts.astype(np.float64)
            elif entry.sums.size != sums[name].size:
                wrong.append(name)
            else:
                # A stacked tensor in one row (the legacy format) takes the shape of the one that knows its experts.
                rows = max(len(counts[name]), len(entry.counts))
                shape = (rows, entry.sums.size // rows)
                sums[name] = sums[name].reshape(shape) + entry.sums.reshape(shape)
                counts[name] = np.broadcast_to(counts[name], rows) + np.broadcast_to(entry.counts, rows)
    if wrong:
        raise InvalidParameter(
            f"These importance matrices are of different models: {_listed(wrong)} not of one size in all of them. "
            "Merge matrices of one model.",
            param="include",
        )
    tokens = sum(matrix.chunks * matrix.chunk_tokens for matrix in matrices)
    return Importance(
        entries={name: Entry(sums[name].astype(np.float32), counts[name].astype(np.float32)) for name in sums},
        chunks=min(tokens // first.chunk_tokens, MAX_CHUNKS),
        chunk_tokens=first.chunk_tokens,
        datasets=tuple(dict.fromkeys(name for matrix in matrices for name in matrix.datasets)),
    )


# --- whose it is -------------------------------------------------------------------------------------------------


def check_belongs(importance: Importance, header: Header) -> None:
    """Raise InvalidParameter, naming tensors, unless the matrix is of the model with this header.

    A tensor that the model does not have, one of another size, or a block without data: each means another model.
    Blocks for the prediction of further tokens are not computed in calibration and may be without data.
    """
    columns = {tensor.name: _columns(tensor.shape) for tensor in header.tensors}
    unknown, other = [], []
    for name, entry in importance.entries.items():
        weight = name.split(" (", 1)[0]  # llama-imatrix also notes views of a weight, as "name (view)"
        if weight not in columns:
            unknown += [name] if _BLOCK.match(name) else []
        elif weight == name and entry.sums.size != columns[name]:
            other.append(name)
    if unknown:
        raise InvalidParameter(
            f"The importance matrix is of another model: {_listed(unknown)} not in this one. "
            "Compute one for this model.",
            param="imatrix",
        )
    if other:
        size = importance.entries[other[0]].sums.size
        raise InvalidParameter(
            f"The importance matrix is of another model: {_listed(other)} of another size in this one (the first has "
            f"{size} columns in the matrix and {columns[other[0]]} in the model). Compute one for this model.",
            param="imatrix",
        )
    seen = {block for name in importance.entries if (block := _block(name)) is not None}
    layers = header.whole(f"{header.architecture}.block_count") or 0
    computed = layers - (header.whole(f"{header.architecture}.nextn_predict_layers") or 0)
    without = [
        tensor.name
        for tensor in header.tensors
        if tensor.name.endswith(".weight")
        and dimensions(tensor.shape) > 1
        and (block := _block(tensor.name)) is not None
        and block not in seen
        and block < computed
    ]
    if without:
        raise InvalidParameter(
            f"The importance matrix is of another model, or of no whole text: {_listed(without)} without data in it. "
            "Compute one for this model.",
            param="imatrix",
        )


def _columns(shape: tuple[int, ...]) -> int:
    """How many values the quantizer expects for a tensor: one for each column of each stacked matrix."""
    return shape[0] * (shape[2] if len(shape) > 2 else 1) * (shape[3] if len(shape) > 3 else 1)


def _block(name: str) -> int | None:
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


def _listed(names: Sequence[str]) -> str:
    """Some names as the subject of a sentence, with its verb."""
    shown = ", ".join(name if len(name) <= 80 else name[:77] + "..." for name in names[:_NAMED_TENSORS])
    more = len(names) - _NAMED_TENSORS
    if more > 0:
        return f"{shown} and {more} more tensors are"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"


# --- statistics --------------------------------------------------------------------------------------------------


def facts(importance: Importance) -> ImportanceFacts:
    """What the catalogue keeps: where the matrix comes from, and the statistics of each tensor in the model's order."""
    names = sorted(importance.entries, key=lambda name: ((block := _block(name)) is None, block or 0, name))
    return ImportanceFacts(
        chunks=importance.chunks,
        chunk_tokens=importance.chunk_tokens,
        datasets=importance.datasets,
        statistics=tuple(_statistics(name, importance.entries) for name in names),
    )


def _statistics(name: str, entries: Mapping[str, Entry]) -> TensorStatistics:
    """As llama-imatrix --show-statistics: over the mean squares of all experts that saw a token."""
    entry = entries[name]
    active = entry.counts > 0
    values = _means(entry)[active].astype(np.float64).ravel()
    if values.size == 0:
        values = np.zeros(1)
    total, mean = float(values.sum()), float(values.mean())
    deviation = float(np.sqrt(max(0.0, float(np.mean(values * values)) - mean * mean)))
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    return TensorStatistics(
        name=name,
        columns=entry.sums.size,
        experts=len(entry.counts),
        experts_without_data=int(np.count_nonzero(~active)),
        total=total,
        mean=mean,
        minimum=float(values.min()),
        maximum=float(values.max()),
        deviation=deviation,
        active=float(np.mean(values > _ACTIVE_ABOVE)),
        entropy=max(0.0, -float(np.sum(shares * np.log2(shares)))),
        z_share=float(np.mean(values > mean + deviation)) if deviation > 0 else 0.0,
        cosine=_cosine(name, entries),
    )


def _cosine(name: str, entries: Mapping[str, Entry]) -> float:
    """Similarity of the sums to those of the same tensor one block before; 0 where there is none."""
    found = _BLOCK.match(name)
    if found is None:
        return 0.0
    before = entries.get(f"{name[: found.start(1)]}{int(found[1]) - 1}{name[found.end(1) :]}")
    if before is None or before.sums.size != entries[name].sums.size:
        return 0.0
    one, other = (entry.sums.astype(np.float64).ravel() for entry in (entries[name], before))
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm > 0 else 0.0
