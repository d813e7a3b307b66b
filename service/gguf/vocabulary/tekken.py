"""tekken.json: Mistral's own format of byte-level BPE, where a model comes without the files of transformers.

Runs in job children. Tokens are bytes in the order in which they were merged; special tokens come before them. What is
made of it is what tokenizer.json of the same tokenizer would hold.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.header import MAX_TOKENS
from service.gguf.vocabulary import values
from service.gguf.vocabulary.byte_pair import letters_of
from service.gguf.vocabulary.definition import AddedToken, Definition

FILE = "tekken.json"
_MAX_TOKEN_BYTES = 512  # all ways to cut each in two are tried
_ROLES = {"bos": "<s>", "eos": "</s>", "unknown": "<unk>", "padding": "<pad>"}


def tekken_definition(files: Files) -> Definition | None:
    """None without a tekken.json. Raises InvalidModel."""
    file = files.json(FILE)
    if file is None:
        return None
    config = values.mapping(file.get("config"), "its config")
    size = values.number(config.get("default_vocab_size"), "default_vocab_size")
    specials = values.number(config.get("default_num_special_tokens"), "default_num_special_tokens")
    added = tuple(_added(file.get("special_tokens"), specials))
    learned = values.sequence(file.get("vocab"), "its vocabulary")
    if not specials < size <= MAX_TOKENS or len(learned) < size - specials:
        raise InvalidModel(f"{FILE} has {len(learned)} tokens where {size - specials} belong; download it again.")
    ranks: dict[bytes, int] = {}
    for rank, item in enumerate(learned[: size - specials]):
        ranks[_bytes_of(item, rank)] = rank
    if len(ranks) != size - specials:
        raise InvalidModel(f"{FILE} has a token twice; download it again.")
    pattern = values.text(config.get("pattern"), "its pattern")
    return Definition(
        model="BPE",
        pieces={letters_of(text): specials + rank for text, rank in ranks.items()},
        merges=tuple(_merges(ranks)),
        added=added,
        byte_fallback=False,
        ignore_merges=True,
        affixes=False,
        normalizers=(),
        pre_tokenizers=(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ),
        processors=(),
    )


def tekken_fields(definition: Definition) -> list[Field]:
    """The tokens that have a part to play, which this format knows by their texts; every text is given a begin."""
    numbers = {token.text: token.number for token in definition.added}
    if _ROLES["bos"] not in numbers or _ROLES["eos"] not in numbers:
        raise InvalidModel(f"{FILE} names no tokens that begin and end a text; download it again.")
    numbers.setdefault(_ROLES["padding"], numbers[_ROLES["eos"]])
    fields = [
        Field(f"tokenizer.ggml.{role}_token_id", "u32", numbers[text])
        for role, text in _ROLES.items()
        if text in numbers
    ]
    fields.append(Field("tokenizer.ggml.add_bos_token", "bool", True))
    fields.append(Field("tokenizer.ggml.add_eos_token", "bool", False))
    return fields


def _added(value: object, count: int) -> Iterator[AddedToken]:
    """`count` special tokens; those that the file does not name are called by their ids."""
    if value is None or count > MAX_TOKENS:
        raise InvalidModel(
            f"{FILE} does not list its special tokens, as later ones do; add the model's tokenizer.json."
        )
    items = [values.mapping(item, "a special token") for item in values.sequence(value, "its special tokens")]
    texts = {
        values.number(item.get("rank"), "the rank of a special token"): values.text(item.get("token_str"), "its text")
        for item in items
    }
    if len(texts) != len(items) or max(texts, default=-1) >= count:
        raise InvalidModel(f"{FILE} has special tokens that are one too many; download it again.")
    for number in range(count):
        yield AddedToken(number, texts.get(number, f"<SPECIAL_{number}>"), special=True, normalized=False)


def _bytes_of(item: object, rank: int) -> bytes:
    entry: Mapping[str, Any] = values.mapping(item, "a token")
    try:
        text = b64decode(values.text(entry.get("token_bytes"), "the bytes of a token"), validate=True)
    except (binascii.Error, ValueError):
        text = b""
    if not 0 < len(text) <= _MAX_TOKEN_BYTES or entry.get("rank") != rank or (rank < 256 and text != bytes([rank])):
        raise InvalidModel(f"{FILE} has a token that is none at {rank}; download it again.")
    return text


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[str, str]]:
    """Every way to put a token together of two others, in the order of tokens; raises InvalidModel where none is."""
    for text in ranks:
        cuts = [(text[:at], text[at:]) for at in range(1, len(text)) if text[:at] in ranks and text[at:] in ranks]
        if not cuts and len(text) > 1:
            raise InvalidModel(f"{FILE} has a token that no two others make; download it again.")
        for left, right in sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]])):
            yield letters_of(left), letters_of(right)
