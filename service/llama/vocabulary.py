"""A model's vocabulary: tokens' bytes as llguidance wants them and as they are written, special tokens, the tokenizer.

Worker process; any thread, as long as the model is open. Knows nothing of grammars.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass

import llama_cpp.llama_cpp as native

from service.llama.model import Model

# llguidance's mark for a token that is no text: only a grammar that names the token can ask for it.
_NO_TEXT = b"\xff"
_PIECE_BYTES = 1024


def token_bytes(model: Model) -> list[bytes]:
    """The bytes of each token, by id, as `Model.piece` has them; control tokens are marked and have their names.

    A token without bytes that is no control token (`<unk>`) stays empty, which no grammar accepts. `<...>` texts that
    a user of the model defined count as control tokens.
    """
    # A buffer of its own: the model's is the engine thread's.
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    tokens = []
    for token in range(model.vocabulary_size):
        attributes = native.llama_vocab_get_attr(model.vocab, token)
        is_control = bool(attributes & native.LLAMA_TOKEN_ATTR_CONTROL) or model.is_end(token)
        piece = _piece(model, token, buffer, special=is_control)
        if is_control or (
            attributes & native.LLAMA_TOKEN_ATTR_USER_DEFINED and piece.startswith(b"<") and piece.endswith(b">")
        ):
            piece = _NO_TEXT + piece
        tokens.append(piece)
    return tokens


def written(model: Model, tokens: Iterable[int]) -> list[bytes]:
    """The bytes of each token, special ones by name. The ids must be within the vocabulary."""
    buffer = ctypes.create_string_buffer(_PIECE_BYTES)
    return [_piece(model, token, buffer, special=True) for token in tokens]


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """Special tokens of a model that fills holes; `repository` and `file` None where it has none for them."""

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None


def infill_tokens(model: Model) -> InfillTokens | None:
    """What marks a hole; None for a model that cannot fill any."""
    prefix = native.llama_vocab_fim_pre(model.vocab)
    suffix = native.llama_vocab_fim_suf(model.vocab)
    middle = native.llama_vocab_fim_mid(model.vocab)
    if min(prefix, suffix, middle) < 0:
        return None
    repository = native.llama_vocab_fim_rep(model.vocab)
    file = native.llama_vocab_fim_sep(model.vocab)
    return InfillTokens(prefix, suffix, middle, repository if repository >= 0 else None, file if file >= 0 else None)


def tokenizer_address() -> int:
    """Where llama.cpp's `llama_tokenize` lies in this process."""
    address = ctypes.cast(native._lib.llama_tokenize, ctypes.c_void_p).value
    assert address is not None
    return address


def _piece(model: Model, token: int, buffer: ctypes.Array[ctypes.c_char], *, special: bool) -> bytes:
    count = native.llama_token_to_piece(model.vocab, token, buffer, len(buffer), 0, special)
    if count < 0:
        buffer = ctypes.create_string_buffer(-count)
        count = native.llama_token_to_piece(model.vocab, token, buffer, len(buffer), 0, special)
    return buffer.raw[: max(count, 0)]
