"""Byte-level BPE (GPT-2's kind: Llama 3, Qwen, SmolLM, Mistral Nemo, Phi 4, RoBERTa) from tokenizer.json.

Runs in job children. GGUF calls it "gpt2": tokens, merges in order, and a name for the rules that cut words.
"""

from __future__ import annotations

from service.domain.errors import InvalidModel
from service.gguf.fields import Field
from service.gguf.vocabulary.definition import AddedToken, Definition
from service.gguf.vocabulary.pre_tokenizers import pre_tokenizer
from service.gguf.vocabulary.tokens import Kind, Tokens, encoded, looks_special, padded_size

_SPACE = "▁"


def byte_pair_fields(definition: Definition, size: int) -> tuple[list[Field], int]:
    """Fields and the number of tokens; `size` as the model's configuration has it. Raises InvalidModel."""
    if not definition.merges:
        raise InvalidModel("The tokenizer has no merges, which BPE needs; download tokenizer.json again.")
    tokens = numbered_tokens(definition, size)
    fields = [
        Field("tokenizer.ggml.model", "str", "gpt2"),
        Field("tokenizer.ggml.pre", "str", pre_tokenizer(definition)),
        *tokens.fields(scores=False),
        Field("tokenizer.ggml.merges", "arr[str]", [_merge(*pair) for pair in definition.merges]),
    ]
    return fields, len(tokens)


def numbered_tokens(definition: Definition, size: int) -> Tokens:
    """Learned and added tokens, in a vocabulary of `size` or just large enough when that is 0. Raises InvalidModel."""
    added = [(definition.pieces.get(token.text, token.number), token) for token in definition.added]
    named = [*definition.pieces.values(), *(number for number, _ in added)]
    tokens = Tokens.of(padded_size(named, size))
    for text, number in definition.pieces.items():
        tokens.put(number, text, Kind.NORMAL)
    for number, token in added:
        text = token.text if token.normalized else _shown(token.text)
        kind = kind_of(token, text)
        tokens.put(number, text.replace(_SPACE, " ") if kind is Kind.USER_DEFINED else text, kind)
    return tokens


def kind_of(token: AddedToken, text: str) -> Kind:
    """Control tokens are found in a text only where the caller asks for that, user-defined ones always."""
    return Kind.CONTROL if token.special or looks_special(text) else Kind.USER_DEFINED


def _merge(left: str, right: str) -> bytes:
    """A space inside of a part (superword vocabularies) is written as the letter that stands for its byte."""
    return encoded(" ".join(part.replace(" ", "Ġ") for part in (left, right)))


def _letters() -> dict[str, int]:
    """The byte that each letter of GPT-2's vocabularies stands for: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(rest)}


_BYTES = _letters()
_LETTERS = {byte: letter for letter, byte in _BYTES.items()}


def letters_of(text: bytes) -> str:
    """Bytes in the letters that stand for them."""
    return "".join(_LETTERS[byte] for byte in text)


def _shown(text: str) -> str:
    """What the token is decoded to: llama.cpp looks for it in a text that was not normalized."""
    if not all(letter in _BYTES for letter in text):
        return text
    return bytes(_BYTES[letter] for letter in text).decode(errors="replace")
