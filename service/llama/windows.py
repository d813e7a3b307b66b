"""A llama.cpp context that computes whole windows of text at once, for scoring and for watching what is computed.

Child processes only, one thread. Each window is a sequence from position 0 over an empty cache. What the logits mean,
and which windows there are, is its callers' business.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter, LoadFailed, NotSupported
from service.llama.backend import ErrorLines, listening_to_log
from service.llama.context import Batch
from service.llama.model import Model

_MICRO_BATCH_TOKENS = 512

Observer = Callable[[int, bool, int], bool]
"""`(tensor address, ask, user data)`: with `ask` whether to be shown it, else whether to go on. A ctypes callback of
`native.ggml_backend_sched_eval_callback`, or a function that becomes one."""


class WindowContext:
    """Computes up to `sequences` windows of at most `window` tokens in one decode."""

    def __init__(
        self,
        model: Model,
        *,
        window: int,
        sequences: int,
        threads: int,
        flash_attention: bool = True,
        observer: Observer | None = None,
        max_rows: int | None = None,
    ) -> None:
        """Reserve what it takes. `max_rows` bounds the rows of logits that one decode gives; None: one for each token.

        `observer` sees every tensor as the graph is computed, which then goes node by node where it wants to see.
        Raises InvalidParameter for a window longer than the model's context, NotSupported for a model that predicts
        no tokens, LoadFailed when the memory cannot be had.
        """
        if window > model.context_length > 0:
            raise InvalidParameter(
                f"The windows have {window} tokens and the model was trained on at most {model.context_length}; use "
                "shorter ones.",
                param="window",
            )
        tokens = window * sequences
        params = native.llama_context_default_params()
        params.n_ctx = tokens
        params.n_batch = tokens
        params.n_ubatch = min(tokens, _MICRO_BATCH_TOKENS)
        params.n_seq_max = sequences
        # The default reserves logits for every token; fewer than sequences, llama.cpp does not take.
        params.n_outputs_max = max(min(tokens if max_rows is None else max_rows, tokens), sequences)
        params.n_threads = threads
        params.n_threads_batch = threads
        # Every window has cells of its own: attention then reads no other's.
        params.kv_unified = False
        params.swa_full = False
        params.no_perf = True
        params.flash_attn_type = (
            native.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attention else native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        if observer is not None:
            # The callback object must live as long as the context.
            self._callback = native.ggml_backend_sched_eval_callback(observer)
            params.cb_eval = self._callback
        errors = ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_init_from_model(model.handle, params)
        if not handle:
            raise LoadFailed(f"llama.cpp could not make a context: {errors.reason()}.")
        self.model = model
        self.handle = handle
        self.window = window
        self.sequences = sequences
        self._max_rows = int(params.n_outputs_max)
        self._memory = native.llama_get_memory(handle)
        self._batch = Batch(tokens)
        self._rows = 0
        if self._memory is None or model.has_encoder:
            self.close()
            raise NotSupported("This model predicts no next token, so a text cannot be scored with it.")

    def close(self) -> None:
        """Free the buffers; the model stays."""
        if self.handle:
            native.llama_free(self.handle)
            self.handle = None

    def decode(self, windows: Sequence[NDArray[np.int32]], first_logits: int) -> None:
        """Compute the windows, forgetting what came before; logits come for the tokens from `first_logits` on in each.

        Raises LoadFailed when llama.cpp cannot compute them.
        """
        assert 0 < len(windows) <= self.sequences
        self._batch.clear()
        rows = 0
        for sequence, window in enumerate(windows):
            assert len(window) <= self.window
            wanted = max(0, len(window) - first_logits)
            self._batch.add(window.tolist(), 0, sequence, logits=wanted)
            rows += wanted
        assert rows <= self._max_rows
        self._rows = 0
        native.llama_memory_clear(self._memory, True)
        errors = ErrorLines()
        with listening_to_log(errors):
            status = native.llama_decode(self.handle, self._batch.handle)
            native.llama_synchronize(self.handle)
        if status != 0:
            raise LoadFailed(f"llama.cpp could not compute the text (status {status}): {errors.reason()}.")
        self._rows = rows

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last decode, shape (rows, vocabulary): a view, valid until the next decode.

        Rows are in the order of the windows, and within each in the order of its tokens.
        """
        vocabulary = self.model.vocabulary_size
        if not self._rows:
            return np.zeros((0, vocabulary), dtype=np.float32)
        address = ctypes.cast(native.llama_get_logits(self.handle), ctypes.c_void_p).value
        assert address is not None
        buffer = (ctypes.c_float * (self._rows * vocabulary)).from_address(address)
        return np.frombuffer(memoryview(buffer), dtype=np.float32).reshape(self._rows, vocabulary)
