"""tokenizer.json: the definition of a tokenizer in the format of Hugging Face's `tokenizers`, read and checked.

Runs in job children. Takes it apart only: what is made of it for GGUF is in the modules of each kind of vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.header import MAX_TOKENS
from service.gguf.vocabulary import values

_MAX_STEPS = 64
_MAX_SCORE = 1e30  # a log probability; the sums of many stay finite


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the learned vocabulary. `normalized`: texts are looked at for it after normalization."""

    number: int
    text: str
    special: bool
    normalized: bool


@dataclass(frozen=True, slots=True)
class Definition:
    """A tokenizer.json. Steps of a Sequence are listed one after the other.

    `model` is "BPE", "WordPiece" or "Unigram". `pieces` are the learned ones, ids by text; `merges` pairs in order.
    A Unigram model has them in `scored` by id, each with its log probability, and `unknown` is the id for all others.
    """

    model: str
    pieces: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    added: tuple[AddedToken, ...]
    byte_fallback: bool
    ignore_merges: bool
    affixes: bool
    normalizers: tuple[Mapping[str, Any], ...]
    pre_tokenizers: tuple[Mapping[str, Any], ...]
    processors: tuple[Mapping[str, Any], ...]
    scored: tuple[tuple[str, float], ...] = ()
    unknown: int | None = None


def read_definition(files: Files) -> Definition | None:
    """None when there is no tokenizer.json. Tokens that only tokenizer_config.json adds are among the added ones.

    Raises InvalidModel.
    """
    file = files.json("tokenizer.json")
    if file is None:
        return None
    model = values.mapping(file.get("model"), "its model")
    kind = model.get("type")
    if kind is None:  # files from before the models were named
        kind = "BPE" if "merges" in model else "WordPiece"
    if kind not in ("BPE", "WordPiece", "Unigram"):
        raise InvalidModel("The tokenizer is neither BPE nor WordPiece nor Unigram; convert the model with llama.cpp.")
    scored = tuple(_scored(model.get("vocab"))) if kind == "Unigram" else ()
    return Definition(
        model=kind,
        pieces={text: number for number, (text, _) in enumerate(scored)} or _pieces(model.get("vocab")),
        merges=tuple(_merges(model.get("merges"))) if kind == "BPE" else (),
        added=tuple(_added(file.get("added_tokens"), files)),
        byte_fallback=values.flag(model.get("byte_fallback"), "byte_fallback"),
        ignore_merges=values.flag(model.get("ignore_merges"), "ignore_merges"),
        affixes=kind == "BPE" and bool(model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")),
        normalizers=tuple(_steps(file.get("normalizer"), "normalizers")),
        pre_tokenizers=tuple(_steps(file.get("pre_tokenizer"), "pretokenizers")),
        processors=tuple(_steps(file.get("post_processor"), "processors")),
        scored=scored,
        unknown=None if not scored or model.get("unk_id") is None else values.number(model["unk_id"], "unk_id"),
    )


def _pieces(value: object) -> dict[str, int]:
    pieces = values.mapping(value, "its vocabulary")
    if len(pieces) > MAX_TOKENS:
        raise InvalidModel(f"The tokenizer has more than {MAX_TOKENS} tokens.")
    return {text: values.number(identity, "the id of a token") for text, identity in pieces.items()}


def _scored(value: object) -> Iterator[tuple[str, float]]:
    pairs = values.sequence(value, "its vocabulary")
    if not 0 < len(pairs) <= MAX_TOKENS:
        raise InvalidModel(f"The tokenizer has {len(pairs)} tokens; 1 to {MAX_TOKENS} are allowed.")
    for pair in pairs:
        match pair:
            case [str(text), int() | float() as score] if not isinstance(score, bool) and abs(score) <= _MAX_SCORE:
                yield text, float(score)
            case _:
                raise InvalidModel(
                    "The tokenizer's vocabulary holds what is no scored piece; download its files again."
                )


def _merges(value: object) -> Iterator[tuple[str, str]]:
    merges = values.sequence(value, "its list of merges")
    if len(merges) > 4 * MAX_TOKENS:
        raise InvalidModel("The tokenizer has more merges than a vocabulary can have.")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
            raise InvalidModel("The tokenizer's list of merges holds what is no pair; download its files again.")
        yield pair[0], pair[1]


def _added(value: object, files: Files) -> Iterator[AddedToken]:
    texts = set()
    for item in values.sequence(value, "its list of added tokens"):
        entry = values.mapping(item, "an added token")
        token = _added_token(entry.get("id"), entry)
        texts.add(token.text)
        yield token
    yield from (token for token in config_tokens(files) if token.text not in texts)


def config_tokens(files: Files) -> Iterator[AddedToken]:
    """`added_tokens_decoder` of tokenizer_config.json. Raises InvalidModel."""
    config = files.json("tokenizer_config.json") or {}
    for key, item in values.mapping(config.get("added_tokens_decoder"), "added_tokens_decoder").items():
        if not re.fullmatch(r"[0-9]{1,9}", key):
            raise InvalidModel("The tokenizer's files are damaged: the id of an added token is no number.")
        yield _added_token(int(key), values.mapping(item, "an added token"))


def _added_token(identity: object, item: Mapping[str, Any]) -> AddedToken:
    special = values.flag(item.get("special"), "special of an added token")
    return AddedToken(
        values.number(identity, "the id of an added token"),
        values.text(item.get("content"), "the text of an added token"),
        special,
        values.flag(item.get("normalized"), "normalized of an added token", default=not special),
    )


def _steps(value: object, name: str) -> Iterator[Mapping[str, Any]]:
    """A step, or those of a Sequence, which may hold others."""
    waiting = [value] if value is not None else []
    count = 0
    while waiting:
        step = values.mapping(waiting.pop(0), "a step")
        count += 1
        if count > _MAX_STEPS:
            raise InvalidModel(f"The tokenizer has more than {_MAX_STEPS} steps; llama.cpp knows none like it.")
        if step.get("type") == "Sequence":
            waiting[:0] = values.sequence(step.get(name), "a list of steps")
        else:
            yield step
