"""Small tokenizers of XLM-RoBERTa's kind, in the files of the real ones: SentencePiece's Unigram with a compiled map of
letters. Each `write_*` leaves the files in a folder and answers the tokens in the order of their ids.
"""

from __future__ import annotations

import base64
import itertools
import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoint_tokenizers import (
    CONTROL,
    NORMAL,
    SENTENCES,
    UNIGRAM,
    UNKNOWN,
    Piece,
    added_tokens,
    sentencepiece_model,
    write_json,
)

# A few of the letters that SentencePiece's nmt_nfkc maps.
LETTERS = {
    **dict.fromkeys("\t\n\r\u00a0\u3000\u200b", " "),
    **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)},  # full width
    **dict(zip("ﬁ…Ⅳ㎏²\x07", ("fi", "...", "IV", "kg", "2", ""), strict=True)),
}
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
_BLOCK = 256
_VALUE = 1 << 31
_MODELS = "sentence_transformers.models"


def charsmap(letters: Mapping[str, str]) -> bytes:
    """As sentencepiece compiles it: a double array, here with a block for every inner node, and one for all values."""
    replacements = b""
    places = {}
    for text in letters.values():
        if text not in places:
            places[text] = len(replacements)
            replacements += text.encode() + b"\0"
    nodes: dict[bytes, set[int]] = {}
    for letter in letters:
        raw = letter.encode()
        for end in range(len(raw)):
            nodes.setdefault(raw[:end], set()).add(raw[end])
    assert len(letters) <= _BLOCK
    bases = {prefix: _BLOCK * number for number, prefix in enumerate(nodes, start=2)}
    bases |= {letter.encode(): _BLOCK + number for number, letter in enumerate(letters)}
    # A place that nothing leads to has the label of another.
    units = [place & 0xFF ^ 1 for place in range(_BLOCK * (len(nodes) + 2))]
    units[0] = bases[b""] << 10
    units[_BLOCK : 2 * _BLOCK] = [_VALUE] * _BLOCK
    for prefix, followers in nodes.items():
        for label in followers:
            child = prefix + bytes([label])
            place = bases[prefix] ^ label
            units[place] = (place ^ bases[child]) << 10 | (child not in nodes) << 8 | label
    for letter, text in letters.items():
        units[bases[letter.encode()]] = _VALUE | places[text]
    array = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(array)) + array + replacements


@cache
def _learned() -> list[Piece]:
    """Letters and frequent parts of words with a log probability each, as float32; long parts are the likelier."""
    text = "▁" + re.sub(r"\s+", "▁", SENTENCES.strip())
    parts = Counter(
        word[start:end]
        for word in re.findall(r"▁[^▁]*", text)
        for start, end in itertools.combinations(range(len(word) + 1), 2)
        if end - start < 7
    )
    letters = sorted(part for part in parts if len(part) == 1)
    longer = sorted((part for part in parts if len(part) > 1), key=lambda part: (-parts[part] * len(part), part))
    pieces = [*letters, *longer[:200]]
    total = sum(parts[piece] for piece in pieces)
    scores = np.log([parts[piece] / total for piece in pieces]) - np.arange(len(pieces)) * 1e-4
    return [(piece, float(np.float32(score)), NORMAL) for piece, score in zip(pieces, scores, strict=True)]


def write_unigram(folder: Path) -> list[str]:
    """tokenizer.json alone, and that the first token's vector is the text's."""
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 256, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": f"{number}_{kind}" if number else "", "type": f"{_MODELS}.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    tokens = [*SPECIALS, *(text for text, _, _ in _learned()), MASK]
    scores = [0.0] * len(SPECIALS) + [score for _, score, _ in _learned()] + [0.0]
    _write_definition(folder, list(zip(tokens, scores, strict=True)))
    _write_config(folder, {})
    return tokens


def write_unigram_model(folder: Path) -> list[str]:
    """sentencepiece.bpe.model alone, without the mask and the padding, as the first of these models came."""
    pieces: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *_learned()]
    model = sentencepiece_model(pieces, kind=UNIGRAM, remove_extra_whitespaces=True, charsmap=charsmap(LETTERS))
    (folder / "sentencepiece.bpe.model").write_bytes(model)
    _write_config(folder, {})
    return [*SPECIALS, *(text for text, _, _ in _learned()), MASK]


def _write_config(folder: Path, more: Mapping[str, Any]) -> None:
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "mask_token": MASK}
    write_json(folder / "special_tokens_map.json", names)
    own = {"clean_up_tokenization_spaces": True, "model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"}
    write_json(folder / "tokenizer_config.json", {**names, **own, **more})


def _write_definition(folder: Path, pieces: Sequence[tuple[str, float]]) -> None:
    numbers = {text: number for number, (text, _) in enumerate(pieces)}

    def special(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    def sequence(name: str) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": 0}}

    single = [special("<s>"), sequence("A"), special("</s>")]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens((numbers[text], text, True) for text in (*SPECIALS, MASK)),
            "normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(charsmap(LETTERS)).decode(),
            },
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": single,
                "pair": [*single, special("</s>"), sequence("B"), special("</s>")],
                "special_tokens": {
                    text: {"id": text, "ids": [numbers[text]], "tokens": [text]} for text in ("<s>", "</s>")
                },
            },
            "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": 3, "vocab": [list(piece) for piece in pieces]},
        },
    )
