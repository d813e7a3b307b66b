"""Log-probabilities of a row in 16 bits each: the form in which llama-perplexity keeps a source's. Numpy alone.

A row is a float32 scale, a float32 minimum, then one number for each token: ln p = scale * number + minimum. Tokens
more than 16 below the most likely one are put at 16 below. The row's length is even.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COMPACT_RANGE = 16.0  # nats below the most likely token that are told apart
_LEVELS = 65535
_HEAD = 4  # numbers of 16 bits that the scale and the minimum take


def compact_width(vocabulary: int) -> int:
    """Numbers of 16 bits in a row."""
    return 2 * ((vocabulary + 1) // 2) + _HEAD


def compact_into(
    out: NDArray[np.uint16],
    logits: NDArray[np.float32],
    targets: NDArray[np.int32],
    scratch: NDArray[np.float32],
) -> NDArray[np.float64]:
    """The rows of `logits` (rows, vocabulary) in compact form; -ln p of each row's target, exact.

    `scratch` has the shape of `logits` or more rows.
    """
    count, vocabulary = logits.shape
    work = scratch[:count]
    highest = logits.max(axis=1)
    lowest = np.maximum(logits.min(axis=1), highest - np.float32(COMPACT_RANGE))
    np.subtract(logits, highest[:, None], out=work)
    own = work[np.arange(count), targets].astype(np.float64)
    np.exp(work, out=work)
    log_sum = np.log(work.sum(axis=1).astype(np.float64))
    scale = (highest - lowest) / np.float32(_LEVELS)
    head = out[:, :_HEAD].view(np.float32)
    head[:, 0] = scale
    head[:, 1] = lowest - highest - log_sum.astype(np.float32)
    np.subtract(logits, lowest[:, None], out=work)
    np.maximum(work, 0.0, out=work)
    # A row whose logits are all equal has no scale; its numbers are 0.
    work *= np.divide(np.float32(1.0), scale, out=np.zeros_like(scale), where=scale > 0)[:, None]
    np.rint(work, out=work)
    np.copyto(out[:, _HEAD : _HEAD + vocabulary], work, casting="unsafe")
    out[:, _HEAD + vocabulary :] = 0
    losses: NDArray[np.float64] = log_sum - own
    return losses


def unpack(rows: NDArray[np.uint16], out: NDArray[np.float32]) -> NDArray[np.intp]:
    """Log-probabilities of compact rows into `out` (rows, vocabulary); the most likely token of each row, the first
    of equals.
    """
    numbers = rows[:, _HEAD : _HEAD + out.shape[1]]
    head = rows[:, :_HEAD].view(np.float32)
    np.multiply(numbers, head[:, 0:1], out=out)
    out += head[:, 1:2]
    top: NDArray[np.intp] = numbers.argmax(axis=1)
    return top


def are_whole(rows: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Which rows were written: in one of zeros, as a file has them where writing was cut off, all tokens are sure."""
    minimum = rows[:, :_HEAD].view(np.float32)[:, 1]
    whole: NDArray[np.bool_] = np.isfinite(minimum) & (minimum < 0)
    return whole
