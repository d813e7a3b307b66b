"""llama.cpp's DRY sampler stage, for one request.

Of llama.cpp's stages this is the only one in use: it alone needs the vocabulary, and its search for repetitions is no
few lines of numpy. It runs over the tokens seen so far instead of the whole vocabulary, because it changes no others.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from functools import lru_cache

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.llama.model import Model

# The memory layout of `llama_token_data`.
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
assert TOKEN_DATA.itemsize == ctypes.sizeof(native.llama_token_data)


class DryPenalty:
    """Lowers the logits of tokens that would go on with a repetition; owns llama.cpp's stage and its memory."""

    def __init__(
        self,
        model: Model,
        tokens: Sequence[int],
        *,
        multiplier: float,
        base: float,
        allowed_length: int,
        last_n: int,
        sequence_breakers: tuple[str, ...],
    ) -> None:
        """`tokens` is the text so far, of which the last `last_n` (> 0, room is reserved for them) are looked at.

        A repetition never reaches across a sequence breaker. llama.cpp searches the vocabulary for each of them, which
        takes milliseconds, so the stages of recent parameters are kept and copied.
        """
        stage = _stage(model, multiplier, base, allowed_length, last_n, sequence_breakers)
        self._handle = native.llama_sampler_clone(stage.handle)
        self._seen: set[int] = set()
        self._candidates = np.zeros(0, dtype=TOKEN_DATA)
        tokens = tokens[-last_n:]
        for token in tokens:
            native.llama_sampler_accept(self._handle, token)
        self._see(set(tokens))

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits`, shape (vocabulary,), in place."""
        candidates = self._candidates
        if not candidates.size:
            return
        ids = candidates["id"]
        candidates["logit"] = logits[ids]
        data = ctypes.cast(candidates.ctypes.data, native.llama_token_data_p)
        array = native.llama_token_data_array(data, candidates.size, -1, False)
        native.llama_sampler_apply(self._handle, ctypes.byref(array))
        logits[ids] = candidates["logit"]

    def accept(self, token: int) -> None:
        """Remember the next token of the text."""
        native.llama_sampler_accept(self._handle, token)
        if token not in self._seen:
            self._see({token})

    def close(self) -> None:
        """Free the stage."""
        if self._handle:
            native.llama_sampler_free(self._handle)
            self._handle = None

    def _see(self, tokens: set[int]) -> None:
        # Tokens that have left the window stay: llama.cpp's stage does not penalise them.
        self._seen |= tokens
        fresh = np.zeros(len(tokens), dtype=TOKEN_DATA)
        fresh["id"] = list(tokens)
        self._candidates = np.concatenate([self._candidates, fresh])


class _Stage:
    """A sampler stage that is freed with this object."""

    def __init__(self, handle: object) -> None:
        self.handle = handle
        weakref.finalize(self, native.llama_sampler_free, handle)


@lru_cache(maxsize=8)
def _stage(
    model: Model, multiplier: float, base: float, allowed_length: int, last_n: int, sequence_breakers: tuple[str, ...]
) -> _Stage:
    # A C string ends at its first NUL; llama.cpp logs a warning for each empty one.
    texts = [text.encode("utf-8", "replace").split(b"\0")[0] for text in sequence_breakers]
    texts = [text for text in texts if text]
    breakers = (ctypes.c_char_p * len(texts))(*texts)
    return _Stage(
        native.llama_sampler_init_dry(model.vocab, multiplier, base, allowed_length, last_n, breakers, len(breakers))
    )
