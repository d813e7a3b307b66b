"""KV cache and compute buffers over one model, and the batch that one decode call computes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import LoadFailed
from service.domain.memory import CacheType, sequence_ids
from service.llama.backend import ErrorLines, listening_to_log
from service.llama.model import Model

_MICRO_BATCH_TOKENS = 512
_DRAFT_OUTPUTS = 64  # logits for guessed tokens in one batch, beside one for each sequence


_GGML_TYPES = {
    CacheType.F16: native.GGML_TYPE_F16,
    CacheType.Q8_0: native.GGML_TYPE_Q8_0,
    CacheType.Q4_0: native.GGML_TYPE_Q4_0,
}


class Context:
    """KV cache and compute buffers over one model, for many sequences; one thread uses it."""

    def __init__(
        self,
        model: Model,
        *,
        cells: int,
        sequences: int,
        batch_tokens: int,
        threads: int,
        flash_attention: bool,
        cache_type_k: CacheType = CacheType.F16,
        cache_type_v: CacheType = CacheType.F16,
    ) -> None:
        """Reserve `cells` tokens of KV cache for at most `sequences` sequences that are written to.

        `self.sequences` ids exist: more than asked for, so that others can stay in the cache. `batch_tokens` bounds one
        decode call, `self.max_outputs` the logits in it. Raises LoadFailed when the memory cannot be had.
        """
        # An id costs a row of logits (memory.py counts them).
        self.sequences = sequence_ids(sequences, recurrent=model.has_recurrent_state)
        self.max_outputs = min(batch_tokens, sequences + _DRAFT_OUTPUTS)
        params = native.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = batch_tokens
        params.n_ubatch = min(batch_tokens, _MICRO_BATCH_TOKENS)
        params.n_seq_max = self.sequences
        # By default llama.cpp reserves logits for every token of a batch.
        params.n_outputs_max = max(self.max_outputs, self.sequences)
        params.n_threads = threads
        params.n_threads_batch = threads
        params.kv_unified = True
        # Cells outside a sliding window are kept: a sequence can then be cut and shared at any token.
        params.swa_full = True
        params.no_perf = True
        params.type_k = _GGML_TYPES[cache_type_k]
        params.type_v = _GGML_TYPES[cache_type_v]
        params.flash_attn_type = (
            native.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attention else native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        errors = ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_init_from_model(model.handle, params)
        if not handle:
            raise LoadFailed(f"llama.cpp could not make a context: {errors.reason()}.")
        self.model = model
        self.handle = handle
        self.memory = native.llama_get_memory(handle)
        self.cells = int(native.llama_n_ctx(handle))
        self.batch = Batch(batch_tokens)
        self._threads = threads

    def close(self) -> None:
        """Free the cache; the model stays."""
        if self.handle:
            native.llama_free(self.handle)
            self.handle = None

    def use_threads(self, threads: int) -> None:
        """Compute with this many threads from the next decode on."""
        if threads != self._threads:
            native.llama_set_n_threads(self.handle, threads, threads)
            self._threads = threads

    def decode(self) -> int:
        """Run the batch. 0: done; 1: no room in the cache; other: llama.cpp failed (negative) or was aborted (2)."""
        return int(native.llama_decode(self.handle, self.batch.handle))

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits of batch entry `index`, shape (vocabulary,), a writable view valid until the next decode."""
        address = ctypes.cast(native.llama_get_logits_ith(self.handle, index), ctypes.c_void_p).value
        assert address is not None, "no logits were asked for at this entry"
        buffer = (ctypes.c_float * self.model.vocabulary_size).from_address(address)
        return np.frombuffer(memoryview(buffer), dtype=np.float32)

    def forget(self, sequence: int, start: int = 0, end: int | None = None) -> bool:
        """Drop the cells of a sequence from position `start` up to `end` (None: all that follow).

        False when this memory cannot be cut there.
        """
        if self.memory is None:
            return True
        return bool(native.llama_memory_seq_rm(self.memory, sequence, start, -1 if end is None else end))

    def share(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` read what `source` has for positions `start` up to `end`, without copying cells.

        A memory with recurrent state copies all of `source`, which must then be exactly `end` tokens long.
        """
        assert self.memory is not None
        native.llama_memory_seq_cp(self.memory, source, target, start, -1 if self.model.has_recurrent_state else end)


class Batch:
    """The input of one decode call, in numpy arrays that llama.cpp reads in place; one sequence per token."""

    def __init__(self, capacity: int) -> None:
        """Room for `capacity` tokens."""
        self.capacity = capacity
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._sequence_counts = np.ones(capacity, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.int32)
        self._wants_logits = np.zeros(capacity, dtype=np.int8)
        # llama.cpp wants a pointer to each token's list of sequences: these point into one array.
        first = self._sequences.ctypes.data
        self._sequence_pointers = np.arange(first, first + 4 * capacity, 4, dtype=np.uintp)
        self.handle = native.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(native.llama_token)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(native.llama_pos)),
            n_seq_id=self._sequence_counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._sequence_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(native.llama_seq_id))),
            logits=self._wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )
        self.size = 0

    def clear(self) -> None:
        """Empty it."""
        self.size = 0
        self.handle.n_tokens = 0

    def add(self, tokens: Sequence[int], start: int, sequence: int, *, logits: int) -> int:
        """Append consecutive tokens of one sequence from position `start`; the batch index of the first.

        The last `logits` of them get logits.
        """
        first, last = self.size, self.size + len(tokens)
        if last == first + 1:  # a token of a running stream: most entries are
            self._tokens[first] = tokens[0]
            self._positions[first] = start
        else:
            self._tokens[first:last] = tokens
            self._positions[first:last] = np.arange(start, start + last - first, dtype=np.int32)
        self._sequences[first:last] = sequence
        self._wants_logits[first : last - logits] = 0
        self._wants_logits[last - logits : last] = 1
        self.size = last
        self.handle.n_tokens = last
        return first
