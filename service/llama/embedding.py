"""A llama.cpp context that gives vectors for whole sequences instead of logits.

Used in the worker child, by one thread. Knows how a model pools its outputs and what it demands of a batch; what goes
into a batch is the embedder's business.
"""

from __future__ import annotations

import ctypes

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import LoadFailed, NotSupported
from service.llama.backend import ErrorLines, listening_to_log
from service.llama.context import Batch, Context
from service.llama.model import Model

# Sequences in one batch. Recurrent models keep a state for each, and compute them one after the other anyway.
_SEQUENCES = 64
_RECURRENT_SEQUENCES = 8
_VALUE_BYTES = 256  # of one metadata value; longer ones are no numbers and no names


def embedding_size(model: Model) -> int:
    """Numbers in one vector; for a reranker, in one verdict, of which the first is the rank."""
    if ranks(model):
        return int(native.llama_model_n_cls_out(model.handle))
    return int(native.llama_model_n_embd_out(model.handle))


def ranks(model: Model) -> bool:
    """True for rerankers: they say how well two texts fit together."""
    return bool(_stated_pooling(model) == native.LLAMA_POOLING_TYPE_RANK)


def rank_template(model: Model) -> str | None:
    """How a reranker wants its pair, with `{query}` and `{document}` in it; None where its file does not say."""
    value = native.llama_model_chat_template(model.handle, b"rerank")
    return value.decode("utf-8", "replace") if value else None


def rank_separators(model: Model) -> tuple[list[int], list[int], list[int]]:
    """Tokens before the query, between query and document, and behind it, where there is no template."""
    vocab = model.vocab
    eos = int(native.llama_vocab_eos(vocab))
    end = eos if eos >= 0 else int(native.llama_vocab_sep(vocab))
    begin = [model.bos_token] if model.adds_bos else []
    behind = [end] if native.llama_vocab_get_add_eos(vocab) else []
    separator = [int(native.llama_vocab_sep(vocab))] if native.llama_vocab_get_add_sep(vocab) else []
    return begin, behind + separator, behind


def check_embeds(model: Model) -> None:
    """Raise NotSupported for models whose outputs are no vectors and no ranks: encoders with a decoder."""
    if model.has_encoder and model.has_decoder:
        raise NotSupported("This model translates one text into another and gives no embeddings.", param="model")


def generates(context: Context) -> bool:
    """False for models that only embed (BERT and its kin): they remember no tokens, or look at the ones to come.

    llama.cpp's own `llama_model_has_decoder` is true for them.
    """
    return context.memory is not None and bool(native.llama_get_causal_attn(context.handle))


class EmbeddingContext:
    """Compute buffers, and cells where the model has a memory, for texts that become one vector each."""

    def __init__(self, model: Model, *, cells: int, batch_tokens: int, threads: int, flash_attention: bool) -> None:
        """Room for batches of `batch_tokens` and for `cells` tokens held at a time, at least as many.

        Raises NotSupported as `check_embeds` does, and LoadFailed when the memory cannot be had: besides cells and
        compute buffers, llama.cpp reserves 4 * vocabulary bytes for each token of a batch, used or not.
        """
        check_embeds(model)
        pooling = _pooling(model)
        params = native.llama_context_default_params()
        # llama.cpp measures its buffers with the same number of tokens in each sequence, and aborts where that number
        # is none or not whole.
        sequences = min(batch_tokens, _RECURRENT_SEQUENCES if model.has_recurrent_state else _SEQUENCES)
        batch_capacity = -(-batch_tokens // sequences) * sequences
        params.n_seq_max = sequences
        params.n_batch = batch_capacity
        # Means are taken within one micro-batch, and attention that looks ahead sees no further than one.
        params.n_ubatch = batch_capacity
        params.n_ctx = max(cells, batch_capacity)
        params.n_threads = threads
        params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        params.embeddings = True
        params.pooling_type = pooling
        params.flash_attn_type = (
            native.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attention else native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        errors = ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_init_from_model(model.handle, params)
        if not handle:
            raise LoadFailed(f"llama.cpp could not make a context for embeddings: {errors.reason()}.")
        self.model = model
        self.handle = handle
        self.cells = max(cells, batch_capacity)
        self.batch = Batch(batch_capacity)
        self.sequences = sequences
        self.size = embedding_size(model)
        self._memory = native.llama_get_memory(handle)
        self._encodes = model.has_encoder and not model.has_decoder
        self._threads = threads
        # Only what looks back alone can be computed in pieces, and only a vector of the last token needs no more.
        self.splits_texts = (
            self._memory is not None
            and not self._encodes
            and pooling == native.LLAMA_POOLING_TYPE_LAST
            and bool(native.llama_get_causal_attn(handle))
        )

    def close(self) -> None:
        """Free the buffers; the model stays."""
        if self.handle:
            native.llama_free(self.handle)
            self.handle = None

    def use_threads(self, threads: int) -> None:
        """Compute with this many threads from the next decode on."""
        if threads != self._threads:
            native.llama_set_n_threads(self.handle, threads, threads)
            self._threads = threads

    def decode(self) -> int:
        """Run the batch, whose tokens must all want logits. 0: done; anything else: llama.cpp failed."""
        compute = native.llama_encode if self._encodes else native.llama_decode
        return int(compute(self.handle, self.batch.handle))

    def vector(self, sequence: int) -> NDArray[np.float32]:
        """A copy of the vector of a sequence that ended in the last batch, shape (size,)."""
        pointer = native.llama_get_embeddings_seq(self.handle, sequence)
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        assert address is not None, "the sequence was not in the last batch"
        buffer = (ctypes.c_float * self.size).from_address(address)
        return np.frombuffer(memoryview(buffer), dtype=np.float32).copy()

    def forget(self, sequence: int) -> None:
        """Free the cells of a sequence."""
        if self._memory is not None:
            native.llama_memory_seq_rm(self._memory, sequence, -1, -1)


def _pooling(model: Model) -> int:
    stated = _stated_pooling(model)
    if stated not in (native.LLAMA_POOLING_TYPE_UNSPECIFIED, native.LLAMA_POOLING_TYPE_NONE):
        return stated
    # The file says nothing: models that generate sum a text up in its last token, those that look ahead in all.
    looks_ahead = _metadata(model, "attention.causal") == "false"
    return int(native.LLAMA_POOLING_TYPE_MEAN if looks_ahead else native.LLAMA_POOLING_TYPE_LAST)


def _stated_pooling(model: Model) -> int:
    value = _metadata(model, "pooling_type")
    return int(value) if value.isdecimal() else int(native.LLAMA_POOLING_TYPE_UNSPECIFIED)


def _metadata(model: Model, name: str) -> str:
    """`{architecture}.{name}` as text; empty when the file does not say."""
    return _value(model, f"{_value(model, 'general.architecture')}.{name}")


def _value(model: Model, key: str) -> str:
    buffer = ctypes.create_string_buffer(_VALUE_BYTES)
    native.llama_model_meta_val_str(model.handle, key.encode(), buffer, _VALUE_BYTES)
    return buffer.value.decode("utf-8", "replace")
