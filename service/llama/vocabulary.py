"""A model's vocabulary as llguidance wants it: every token's bytes, and llama.cpp's own tokenizer by address.

Worker process; any thread, as long as the model is open. Knows nothing of grammars.
"""

from __future__ import annotations

import ctypes

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
