"""SentencePiece's Unigram (XLM-RoBERTa's kind: multilingual E5, BGE M3) from tokenizer.json or sentencepiece.bpe.model.

Runs in job children. GGUF calls this kind of vocabulary "t5": pieces with log probabilities, of which the likeliest
sequence is taken, and a map of letters that texts are normalized by first.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.charsmap import MAX_CHARSMAP_BYTES, check_charsmap
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.vocabulary import values
from service.gguf.vocabulary.byte_pair import kind_of
from service.gguf.vocabulary.definition import Definition, config_tokens
from service.gguf.vocabulary.piece_model import MAX_MODEL_BYTES, PieceModel, read_model
from service.gguf.vocabulary.tokens import Kind, Tokens, padded_size

MODEL_FILE = "sentencepiece.bpe.model"  # which is no BPE in spite of its name
_FIRST = (b"<s>", b"<pad>", b"</s>", b"<unk>")
_FIRST_OF_MODEL = (b"<unk>", b"<s>", b"</s>")
_SPACE = "▁"


def unigram_fields(definition: Definition, size: int) -> tuple[list[Field], int]:
    """Fields and the number of tokens from tokenizer.json; `size` as the model's configuration has it.

    Raises InvalidModel.
    """
    unknown = definition.unknown
    if unknown is None or not unknown < len(definition.scored) or definition.byte_fallback:
        raise InvalidModel("tokenizer.json has no token for unknown letters, which llama.cpp needs; check the files.")
    begins_with_space, spaces_removed = _spaces(definition)
    added = [(definition.pieces.get(token.text, token.number), token) for token in definition.added]
    tokens = Tokens.of(padded_size([len(definition.scored) - 1, *(number for number, _ in added)], size))
    for number, (text, score) in enumerate(definition.scored):
        tokens.put(number, text, Kind.NORMAL, score)
    for number, token in added:
        score = definition.scored[number][1] if number < len(definition.scored) else 0.0
        tokens.put(number, token.text, kind_of(token, token.text), score)
    tokens.kinds[unknown] = Kind.UNKNOWN
    fields = _fields(tokens, unknown, _charsmap(definition), begins_with_space, spaces_removed)
    return fields, len(tokens)


def listed_unigram_fields(files: Files, size: int) -> tuple[list[Field], int] | None:
    """The same from sentencepiece.bpe.model alone; None without that file. Raises InvalidModel.

    transformers puts four tokens of its own in the place of the model's first three, so that the others move by one,
    and gives every text the first and the third.
    """
    content = files.content(MODEL_FILE, MAX_MODEL_BYTES)
    if content is None:
        return None
    model = read_model(content)
    if not model.unigram or tuple(piece.text for piece in model.pieces[:3]) != _FIRST_OF_MODEL:
        raise InvalidModel(f"{MODEL_FILE} is none of XLM-RoBERTa's; add the model's tokenizer.json.")
    tokens = _moved(model, padded_size(range(len(model.pieces) + 1), size))
    later = {text: values.number(number, "the id of an added token") for text, number in _later(files).items()}
    for text, number in later.items():
        if number > len(model.pieces) + 1:  # behind the mask, which is the last that all of these models have
            tokens.put(number, text, Kind.USER_DEFINED)
    for token in config_tokens(files):
        if token.number > len(model.pieces) + 1:
            tokens.put(token.number, token.text, kind_of(token, token.text))
    fields = _fields(tokens, _FIRST.index(b"<unk>"), model.charsmap, model.begins_with_space, model.spaces_removed)
    fields += [Field(f"tokenizer.ggml.{name}_token_id", "u32", number) for name, number in _NUMBERS.items()]
    fields += [Field(f"tokenizer.ggml.add_{name}_token", "bool", True) for name in ("bos", "eos", "sep")]
    return fields, len(tokens)


_NUMBERS = {"bos": 0, "padding": 1, "eos": 2, "seperator": 2}  # as GGUF spells it


def _moved(model: PieceModel, size: int) -> Tokens:
    tokens = Tokens.of(size)
    if size <= len(model.pieces):
        raise InvalidModel(
            f"{MODEL_FILE} has {len(model.pieces)} pieces, the model {size} tokens; they do not belong together."
        )
    for number, piece in enumerate(model.pieces):
        tokens.put(number, piece.text, Kind.NORMAL if piece.kind is Kind.USER_DEFINED else piece.kind, piece.score)
    kinds = [Kind.CONTROL] * 3 + [Kind.UNKNOWN]
    tokens.texts = [*_FIRST, *tokens.texts[3:-1]]
    tokens.kinds = [*kinds, *tokens.kinds[3:-1]]
    tokens.scores = [0.0] * len(_FIRST) + tokens.scores[3:-1]
    return tokens


def _later(files: Files) -> Mapping[str, Any]:
    return files.json("added_tokens.json") or {}


def _fields(
    tokens: Tokens, unknown: int, charsmap: bytes, begins_with_space: bool, spaces_removed: bool
) -> list[Field]:
    fields = [
        Field("tokenizer.ggml.model", "str", "t5"),
        Field("tokenizer.ggml.pre", "str", "default"),
        *tokens.fields(scores=True),
        Field("tokenizer.ggml.unknown_token_id", "u32", unknown),
        Field("tokenizer.ggml.add_space_prefix", "bool", begins_with_space),
        Field("tokenizer.ggml.remove_extra_whitespaces", "bool", spaces_removed),
    ]
    if charsmap:
        check_charsmap(charsmap)
        fields.append(Field("tokenizer.ggml.precompiled_charsmap", "arr[u8]", charsmap))
    return fields


def _charsmap(definition: Definition) -> bytes:
    """Of the Precompiled step, which SentencePiece's normalization has become; empty without one."""
    maps = [step.get("precompiled_charsmap") for step in definition.normalizers if step.get("type") == "Precompiled"]
    if not maps:
        return b""
    text = maps[0] or ""
    if len(maps) > 1 or not isinstance(text, str) or len(text) > 2 * MAX_CHARSMAP_BYTES:
        raise _unknown()
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidModel("tokenizer.json's precompiled_charsmap is damaged; download it again.") from None


def _spaces(definition: Definition) -> tuple[bool, bool]:
    """Whether a text is begun with a space, and whether several in it become one. Raises InvalidModel.

    For steps that llama.cpp's own preparation of texts has nothing for.
    """
    begins = removes = False
    for step in definition.normalizers:
        match step:
            case {"type": "Precompiled"} | {"type": "Strip"}:
                pass
            case {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " " | "▁"}:
                removes = True
            case _:
                raise _unknown()
    for step in definition.pre_tokenizers:
        match step:
            case {"type": "WhitespaceSplit"}:
                removes = True
            case {"type": "Metaspace", "replacement": "▁"}:
                begins = step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space") is not False
            case _:
                raise _unknown()
    if removes and not begins:  # llama.cpp begins every word with a space, then
        raise _unknown()
    return begins, removes


def _unknown() -> InvalidModel:
    return InvalidModel(
        "tokenizer.json prepares texts in a way that llama.cpp has no Unigram setting for, so the model would read "
        "other tokens than it was trained on. If llama.cpp knows this model, convert it with its convert_hf_to_gguf.py "
        "and import the GGUF file."
    )
