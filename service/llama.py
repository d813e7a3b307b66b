"""The only door to llama_cpp: handles with lifetimes, native errors turned into ours.

Runs in child processes only (workers and jobs); the server process never imports it. Knows nothing of scheduling,
prompts or jobs. `python -m service.llama` prints what this build is, as JSON, for `quantry doctor`.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as native
import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter, LoadFailed, QuantizationFailed

LogListener = Callable[[int, str], None]
_PREFIX = re.compile(r"^(?:\w+: )*(?:(?:failed to quantize|error loading model): (?:\w+: )*)?")
_PATH = re.compile(r"'?/[^\s':]+'?")
_LOG_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_LOG_CONTINUATION = 5  # GGML_LOG_LEVEL_CONT: more of the line before

_log_listeners: list[LogListener] = []


def _forward_log(level: int, text: bytes, _user_data: object) -> None:
    for listener in _log_listeners:
        listener(level, text.decode("utf-8", "replace"))


# The callback object must outlive the library's use of it, hence the module-level name.
_log_callback = native.llama_log_callback(_forward_log)
native.llama_log_set(_log_callback, ctypes.c_void_p(0))


@contextmanager
def listening_to_log(listener: LogListener) -> Iterator[None]:
    """Send every piece of llama.cpp's log (level, text; not always whole lines) to `listener` meanwhile."""
    _log_listeners.append(listener)
    try:
        yield
    finally:
        _log_listeners.remove(listener)


class _ErrorLines:
    """Collects the error lines of the log, to say why a call failed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._last_level = 0

    def __call__(self, level: int, text: str) -> None:
        level = self._last_level if level == _LOG_CONTINUATION else level
        self._last_level = level
        if level == _LOG_ERROR and text.strip(" =\n"):
            self.lines.append(text.strip())

    def reason(self) -> str:
        """The error nearest to the cause: the last one that says more than that it failed, without paths."""
        for line in reversed(self.lines):
            told = _PATH.sub("the file", _PREFIX.sub("", line)).rstrip(".")
            if told and not told.startswith("failed to load model"):
                return told[:400]
        return "llama.cpp gave no reason"


_backend_ready = False


def start_backend() -> None:
    """Load the compute backends once per process; builds with loadable backends find theirs beside the library."""
    global _backend_ready
    if _backend_ready:
        return
    # libllama's own handle: a wheel holds copies of libggml under several names, each with a registry of its own, and
    # only the one that libllama is linked to counts.
    library = native._lib
    library.ggml_backend_reg_count.restype = ctypes.c_size_t
    if library.ggml_backend_reg_count() == 0:
        loader = library.ggml_backend_load_all_from_path
        loader.argtypes = [ctypes.c_char_p]
        loader.restype = None
        loader(os.fsencode(Path(native.__file__).parent / "lib"))
    native.llama_backend_init()
    _backend_ready = True


@dataclass(frozen=True, slots=True)
class Build:
    """What the installed library is."""

    binding_version: str
    llama_version: str
    system_info: str
    supports_gpu_offload: bool

    @property
    def name(self) -> str:
        """One line for lineage, e.g. `llama-cpp-python 0.3.36 (llama.cpp b1234)`."""
        return f"llama-cpp-python {self.binding_version} (llama.cpp {self.llama_version})"


def build() -> Build:
    """Describe the library that is loaded here."""
    import llama_cpp

    start_backend()
    return Build(
        binding_version=llama_cpp.__version__,
        llama_version=_text(native.llama_version()),
        system_info=_text(native.llama_print_system_info()).strip(),
        supports_gpu_offload=bool(native.llama_supports_gpu_offload()),
    )


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


# --- quantizing --------------------------------------------------------------------------------------------------


def quantize_model(
    source: Path,
    target: Path,
    *,
    file_type: int,
    allow_requantize: bool = False,
    dry_run: bool = False,
    threads: int = 0,
    on_log: Callable[[str], None] | None = None,
) -> None:
    """Run llama.cpp's quantizer from one GGUF file to another; `file_type` is a `llama_ftype`.

    `on_log` gets each piece of the log as it comes, `[ n/ m] name ...` among it: the library has no other
    progress. `dry_run` writes nothing and logs what each tensor would become. `threads` 0 means all cores.
    Raises QuantizationFailed with llama.cpp's own reason.
    """
    start_backend()
    params = native.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = threads
    params.allow_requantize = allow_requantize
    params.dry_run = dry_run
    errors = _ErrorLines()

    def listener(level: int, text: str) -> None:
        errors(level, text)
        if on_log is not None:
            on_log(text)

    with listening_to_log(listener):
        status = native.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if status != 0:
        raise QuantizationFailed(f"llama.cpp did not quantize the model: {errors.reason()}.")


# --- inference ---------------------------------------------------------------------------------------------------


class Model:
    """A loaded GGUF file: weights and vocabulary. Close it after every context made from it."""

    def __init__(self, path: Path, *, gpu_layers: int, use_extra_buffers: bool) -> None:
        """Load `path`. `gpu_layers` -1 offloads all layers, 0 none.

        `use_extra_buffers` repacks weights for faster kernels; without it, AMX kernels stay unused as well.
        Raises LoadFailed with llama.cpp's reason.
        """
        start_backend()
        params = native.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        params.use_extra_bufts = use_extra_buffers
        errors = _ErrorLines()
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
        self.bos_token = int(native.llama_vocab_bos(vocab))
        self.eos_token = int(native.llama_vocab_eos(vocab))
        self.adds_bos = bool(native.llama_vocab_get_add_bos(vocab))
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
        if not 0 <= token < self.vocabulary_size:
            return b""
        buffer = self._piece_buffer
        count = native.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = native.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[: max(count, 0)]

    def is_end(self, token: int) -> bool:
        """True for every token that ends a generation (end of sequence, of turn, ...)."""
        return bool(native.llama_vocab_is_eog(self.vocab, token))

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
    ) -> None:
        """Reserve `cells` tokens of KV cache, shared by at most `sequences` sequences.

        `batch_tokens` bounds one decode call. Raises LoadFailed when the memory cannot be had.
        """
        params = native.llama_context_default_params()
        params.n_ctx = cells
        params.n_batch = batch_tokens
        params.n_ubatch = min(batch_tokens, 512)
        params.n_seq_max = sequences
        params.n_threads = threads
        params.n_threads_batch = threads
        params.kv_unified = True
        params.no_perf = True
        params.flash_attn_type = (
            native.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attention else native.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        errors = _ErrorLines()
        with listening_to_log(errors):
            handle = native.llama_init_from_model(model.handle, params)
        if not handle:
            raise LoadFailed(f"llama.cpp could not make a context: {errors.reason()}.")
        self.model = model
        self.handle = handle
        self.memory = native.llama_get_memory(handle)
        self.cells = int(native.llama_n_ctx(handle))
        self.batch = Batch(batch_tokens)

    def close(self) -> None:
        """Free the cache; the model stays."""
        if self.handle:
            self.batch.close()
            native.llama_free(self.handle)
            self.handle = None

    def decode(self) -> int:
        """Run the batch. 0: done; 1: no room in the cache; other: llama.cpp failed (negative) or was aborted (2)."""
        return int(native.llama_decode(self.handle, self.batch.handle))

    def logits(self, index: int) -> NDArray[np.float32]:
        """Logits of batch entry `index`, shape (vocabulary,), a view valid until the next decode."""
        pointer = native.llama_get_logits_ith(self.handle, index)
        return np.ctypeslib.as_array(pointer, shape=(self.model.vocabulary_size,))

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Drop the cells of a sequence from position `start` on. False when this memory cannot be cut there."""
        if self.memory is None:
            return True
        return bool(native.llama_memory_seq_rm(self.memory, sequence, start, -1))


class Batch:
    """The input of one decode call, filled through numpy views; one sequence per token."""

    def __init__(self, capacity: int) -> None:
        """Room for `capacity` tokens."""
        self.capacity = capacity
        self.handle = native.llama_batch_init(capacity, 0, 1)
        self._tokens = np.ctypeslib.as_array(self.handle.token, shape=(capacity,))
        self._positions = np.ctypeslib.as_array(self.handle.pos, shape=(capacity,))
        self._wants_logits = np.ctypeslib.as_array(self.handle.logits, shape=(capacity,))
        np.ctypeslib.as_array(self.handle.n_seq_id, shape=(capacity,))[:] = 1
        # seq_id is an array of pointers, each to its own small allocation: one view per entry, made once.
        self._sequences = [np.ctypeslib.as_array(self.handle.seq_id[i], shape=(1,)) for i in range(capacity)]
        self.size = 0

    def clear(self) -> None:
        """Empty it."""
        self.size = 0
        self.handle.n_tokens = 0

    def add(self, tokens: Sequence[int], start: int, sequence: int, *, logits_for_last: bool) -> int:
        """Append consecutive tokens of one sequence from position `start`; the batch index of the last one."""
        first, last = self.size, self.size + len(tokens)
        self._tokens[first:last] = tokens
        self._positions[first:last] = np.arange(start, start + len(tokens), dtype=np.int32)
        self._wants_logits[first:last] = 0
        if logits_for_last:
            self._wants_logits[last - 1] = 1
        for index in range(first, last):
            self._sequences[index][0] = sequence
        self.size = last
        self.handle.n_tokens = last
        return last - 1

    def close(self) -> None:
        """Free its arrays."""
        native.llama_batch_free(self.handle)


class SamplerChain:
    """llama.cpp's sampler stages in order, for one request; owns them."""

    def __init__(self, stages: Sequence[Any]) -> None:
        """`stages` are handles from the `native.llama_sampler_init_*` functions; the chain frees them."""
        self.handle = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        for stage in stages:
            native.llama_sampler_chain_add(self.handle, stage)

    def sample(self, context: Context, index: int) -> int:
        """Draw the next token from the logits of batch entry `index`, and remember it for the penalties."""
        return int(native.llama_sampler_sample(self.handle, context.handle, index))

    def accept(self, token: int) -> None:
        """Show the chain a token that it did not draw (a prompt token, for the penalties)."""
        native.llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        """Free the chain and its stages."""
        if self.handle:
            native.llama_sampler_free(self.handle)
            self.handle = None


def sampler_stages(
    *,
    vocabulary: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    repeat_penalty: float,
    repeat_last_n: int,
    presence_penalty: float,
    frequency_penalty: float,
    logit_bias: Sequence[tuple[int, float]],
    seed: int,
) -> list[Any]:
    """Sampler handles in llama.cpp's usual order; stages at their neutral value are left out."""
    stages: list[Any] = []
    if logit_bias:
        biases = (native.llama_logit_bias * len(logit_bias))(*(native.llama_logit_bias(t, b) for t, b in logit_bias))
        stages.append(native.llama_sampler_init_logit_bias(vocabulary, len(logit_bias), biases))
    if repeat_last_n and (repeat_penalty != 1.0 or presence_penalty or frequency_penalty):
        stages.append(
            native.llama_sampler_init_penalties(
                vocabulary, repeat_last_n, repeat_penalty, frequency_penalty, presence_penalty
            )
        )
    if temperature <= 0.0:
        stages.append(native.llama_sampler_init_greedy())
        return stages
    if top_k > 0:
        stages.append(native.llama_sampler_init_top_k(top_k))
    if typical_p < 1.0:
        stages.append(native.llama_sampler_init_typical(typical_p, 1))
    if top_p < 1.0:
        stages.append(native.llama_sampler_init_top_p(top_p, 1))
    if min_p > 0.0:
        stages.append(native.llama_sampler_init_min_p(min_p, 1))
    stages.append(native.llama_sampler_init_temp(temperature))
    stages.append(native.llama_sampler_init_dist(seed))
    return stages


if __name__ == "__main__":
    described = build()
    json.dump(
        {
            "name": described.name,
            "binding_version": described.binding_version,
            "llama_version": described.llama_version,
            "system_info": described.system_info,
            "supports_gpu_offload": described.supports_gpu_offload,
        },
        sys.stdout,
    )
