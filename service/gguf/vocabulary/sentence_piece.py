"""SentencePiece's BPE (tokenizer.model: Llama 2, Mistral, Gemma, Phi 3) and tokenizers converted from it.

Runs in job children. GGUF calls this kind of vocabulary "llama": pieces with scores, the best pair merged first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.vocabulary import values
from service.gguf.vocabulary.definition import AddedToken, Definition, config_tokens
from service.gguf.vocabulary.piece_model import MAX_MODEL_BYTES, read_model
from service.gguf.vocabulary.tokens import Kind, Tokens, looks_special, padded_size

_ADDED_SCORE = -1000.0  # what llama.cpp's converter gives tokens that were not learned
_BYTE = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
_SPACE = "▁"


def sentence_piece_fields(files: Files, size: int, *, as_phi3: bool) -> tuple[list[Field], int]:
    """Fields and the number of tokens from tokenizer.model; `size` as the model's configuration has it.

    Files that name tokens afterwards have the last word: added_tokens.json, tokenizer_config.json and, for Phi 3,
    tokenizer.json. Raises InvalidModel.
    """
    content = files.content("tokenizer.model", MAX_MODEL_BYTES)
    assert content is not None
    pieces = read_model(content).pieces
    tokens = Tokens.of(padded_size(range(len(pieces)), size))
    for number, piece in enumerate(pieces[: len(tokens)]):
        kind = Kind.NORMAL if piece.kind is Kind.USER_DEFINED else piece.kind
        tokens.put(number, piece.text, kind, piece.score)
    for text, identity in (files.json("added_tokens.json") or {}).items():
        number = values.number(identity, "the id of an added token")
        if number < len(tokens):
            tokens.put(number, text, Kind.USER_DEFINED, _ADDED_SCORE)
    for token in _named_later(files, as_phi3=as_phi3):
        if token.number < len(tokens):
            _put(tokens, token, as_phi3=as_phi3)
    return _fields(tokens), len(tokens)


def merged_piece_fields(definition: Definition, size: int) -> tuple[list[Field], int]:
    """The same from tokenizer.json, where tokenizer.model was left out. Raises InvalidModel.

    llama.cpp merges the pair with the best score first; scores are therefore the ranks of merges, below zero.
    """
    if not definition.merges or definition.affixes:
        raise InvalidModel("tokenizer.json is no SentencePiece tokenizer that llama.cpp knows; add tokenizer.model.")
    begins_with_space = _prefix_space(definition)
    ranks: dict[str, int] = {}
    for left, right in definition.merges:
        ranks.setdefault(left + right, len(ranks))
    numbers = {definition.pieces.get(token.text, token.number): token for token in definition.added}
    tokens = Tokens.of(padded_size([*definition.pieces.values(), *numbers], size))
    for text, number in definition.pieces.items():
        tokens.put(number, text, Kind.NORMAL, -float(ranks.get(text, len(ranks))))
        if _BYTE.fullmatch(tokens.texts[number]):
            tokens.kinds[number] = Kind.BYTE
    for number, token in numbers.items():
        _put(tokens, AddedToken(number, token.text, token.special, token.normalized), as_phi3=False)
    fields = _fields(tokens)
    if not begins_with_space:
        fields.append(Field("tokenizer.ggml.add_space_prefix", "bool", False))
    return fields, len(tokens)


def _named_later(files: Files, *, as_phi3: bool) -> Iterator[AddedToken]:
    yield from config_tokens(files)
    if as_phi3:
        file = files.json("tokenizer.json") or {}
        for item in values.sequence(file.get("added_tokens"), "its list of added tokens"):
            entry = values.mapping(item, "an added token")
            yield AddedToken(
                values.number(entry.get("id"), "the id of an added token"),
                values.text(entry.get("content"), "the text of an added token"),
                values.flag(entry.get("special"), "special of an added token"),
                normalized=False,
            )


def _put(tokens: Tokens, token: AddedToken, *, as_phi3: bool) -> None:
    control = token.special or (not as_phi3 and looks_special(token.text))
    kind = Kind.CONTROL if control else Kind.USER_DEFINED
    text = token.text if control or as_phi3 else token.text.replace(_SPACE, " ")  # compared with the text as it came
    tokens.put(token.number, text, kind, _ADDED_SCORE)


def _fields(tokens: Tokens) -> list[Field]:
    return [
        Field("tokenizer.ggml.model", "str", "llama"),
        Field("tokenizer.ggml.pre", "str", "default"),
        *tokens.fields(scores=True),
    ]


def _prefix_space(definition: Definition) -> bool:
    """Whether a text is begun with a space. Raises InvalidModel for steps other than those of spaces."""
    prefix = False
    for step in (*definition.normalizers, *definition.pre_tokenizers):
        match step:
            case {"type": "Prepend", "prepend": "▁"}:
                prefix = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                pass
            case {"type": "Metaspace", "replacement": "▁"}:
                prefix = prefix or step.get("prepend_scheme", "always") != "never"
            case {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}:
                pass  # no spaces are left by then
            case _:
                raise InvalidModel(
                    "tokenizer.json prepares texts in a way that llama.cpp has no SentencePiece setting for; add the "
                    "model's tokenizer.model."
                )
    return prefix
