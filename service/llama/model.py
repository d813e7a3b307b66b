"""A loaded GGUF file: weights and vocabulary."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import llama_cpp.llama_cpp as native
import numpy as np

from service.domain.errors import InvalidParameter, LoadFailed
from service.llama.backend import ErrorLines, listening_to_log, start_backend


class Model:
    """A loaded GGUF file: weights and vocabulary. Close it after every context made from it."""

    def __init__(self, path: Path, *, gpu_layers: int, use_extra_buffers: bool, writable: bool = False) -> None:
        """Load `path`. `gpu_layers` -1 offloads all layers, 0 none.

        `use_extra_buffers` repacks weights for faster kernels; without it, AMX kernels stay unused as well. `writable`
        copies the weights to memory instead of mapping the file. Raises LoadFailed with llama.cpp's reason.
        """
        start_backend()
        params = native.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = use_extra_buffers
        if writable:
            params.load_mode = native.LLAMA_LOAD_MODE_NONE
        errors = ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_model_load_from_file(os.fsencode(path), params)
        if not handle:
            raise LoadFailed(f"llama.cpp could not load the model: {errors.reason()}.")
        self.handle = handle
        vocab = native.llama_model_get_vocab(handle)
        assert vocab is not None
        self.vocab = vocab
        self.vocabulary_size = int(native.llama_vocab_n_tokens(vocab))
        self.context_length = int(native.llama_model_n_ctx_train(handle))
        self.has_decoder = bool(native.llama_model_has_decoder(handle))
        self.has_encoder = bool(native.llama_model_has_encoder(handle))
        # State that each token overwrites: such a sequence can be copied whole, and never cut back.
        self.has_recurrent_state = bool(native.llama_model_is_recurrent(handle) or native.llama_model_is_hybrid(handle))
        self.embedding_size = int(native.llama_model_n_embd(handle))
        self.bos_token = int(native.llama_vocab_bos(vocab))
        self.eos_token = int(native.llama_vocab_eos(vocab))
        self.adds_bos = bool(native.llama_vocab_get_add_bos(vocab))
        ends = [token for token in range(self.vocabulary_size) if native.llama_vocab_is_eog(vocab, token)]
        self.end_tokens = np.array(ends, dtype=np.int32)
        self._ends = frozenset(ends)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._piece_buffer = ctypes.create_string_buffer(256)

    def close(self) -> None:
        """Free the weights; the object is unusable afterwards."""
        if self.handle:
            native.llama_model_free(self.handle)
            self.handle = None

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids. `add_special` adds BOS/EOS as the model wants; `parse_special` reads `<|...|>` as ids."""
        data = text.encode("utf-8", "replace")
        capacity = len(data) + 8
        tokens = (native.llama_token * capacity)()
        count = native.llama_tokenize(self.vocab, data, len(data), tokens, capacity, add_special, parse_special)
        if count < 0:  # the vocabulary needs more tokens than bytes; -count is how many
            capacity = -count
            tokens = (native.llama_token * capacity)()
            count = native.llama_tokenize(self.vocab, data, len(data), tokens, capacity, add_special, parse_special)
        if count < 0:
            raise InvalidParameter("The prompt could not be tokenized; shorten it.", param="prompt")
        return list(tokens[:count])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; `special` also gives the text of control tokens, else they are empty.

        Ids outside the vocabulary (models without a BOS token say -1) have no bytes.
        """
        known = self._pieces.get((token, special))
        if known is not None:
            return known
        if not 0 <= token < self.vocabulary_size:
            return b""
        buffer = self._piece_buffer
        count = native.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = native.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        piece = self._pieces[token, special] = buffer.raw[: max(count, 0)]
        return piece

    def is_end(self, token: int) -> bool:
        """True for every token that ends a generation (end of sequence, of turn, ...)."""
        return token in self._ends

    def special_texts(self) -> list[str]:
        """The texts of all control and user-defined tokens: what `parse_special` would turn into ids."""
        special = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_USER_DEFINED
        texts = []
        for token in range(self.vocabulary_size):
            if native.llama_vocab_get_attr(self.vocab, token) & special:
                text = self.piece(token, special=True).decode("utf-8", "replace")
                if text:
                    texts.append(text)
        return texts

    def chat_template(self) -> str | None:
        """The Jinja chat template in the file's metadata, if any."""
        value = native.llama_model_chat_template(self.handle, None)
        return value.decode("utf-8", "replace") if value else None
