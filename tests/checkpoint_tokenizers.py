"""Small tokenizers in the files of the real ones: definitions (regexes, normalizers, special tokens) as published,
vocabularies learned here from a few sentences.

Each `write_*` leaves the files in a folder and answers the tokens in the order of their ids. SentencePiece models are
written as protobuf by hand.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

MERGES = 160

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on in the warm sun of the morning. "
    "When the rain came they went into the house, where there was bread, water and a small fire. "
    "She said that it's not what they had thought; he'd never seen anything like this before, I'll say! "
    "In 1984 there were 365 days and 12 months; the answer to everything is still 42, or 3.14159. "
    "def main(): return [x for x in range(100) if x % 2 == 0]  # a comment with   spaces\n\n"
    "Über den Wolken muß die Freiheit wohl grenzenlos sein. L'été dernier, nous étions à la mer. "
    "我喜欢在早上喝茶。これはテストです。Привет, мир! "
)

# Patterns as the models publish them in their tokenizer.json.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else "
    "message['role'] %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


# ---- learning merges ----


def _learn(words: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Byte pair encoding (Sennrich et al. 2016): the most frequent pair first, ties by the pair itself."""
    pieces = Counter(tuple(word) for word in words)
    merges = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in pieces.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = Counter({_merged(word, best): times for word, times in pieces.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    parts: list[str] = []
    position = 0
    while position < len(word):
        if word[position : position + 2] == pair:
            parts.append(pair[0] + pair[1])
            position += 2
        else:
            parts.append(word[position])
            position += 1
    return tuple(parts)


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in GPT-2's vocabularies: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@cache
def _byte_level() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges over the letters of bytes; merges keep within words, digits stay alone."""
    letters = _byte_letters()
    words = re.findall(r" ?[^\W\d_]+| ?[^\w\s]+|\d|\n+| +", SENTENCES)
    merges = _learn(("".join(letters[byte] for byte in word.encode()) for word in words), MERGES)
    first = sorted(letters)
    return [*first, *_new(first, merges)], merges


def _new(known: Sequence[str], merges: Sequence[tuple[str, str]]) -> list[str]:
    return [text for text in dict.fromkeys(a + b for a, b in merges) if text not in set(known)]


# ---- tokenizer.json of byte-level BPE ----


def added_tokens(tokens: Iterable[tuple[int, str, bool]], **flags: bool) -> list[dict[str, Any]]:
    rest = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags
    return [{"id": number, "content": text} | rest | {"special": special} for number, text, special in tokens]


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level_step(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _write_byte_level(
    folder: Path,
    *,
    vocabulary: Sequence[str],
    merges: Sequence[tuple[str, str]],
    added: Sequence[tuple[int, str, bool]],
    pre_tokenizer: Mapping[str, Any],
    normalizer: Mapping[str, Any] | None = None,
    post_processor: Mapping[str, Any] | None = None,
    merges_as_text: bool = False,
    ignore_merges: bool = False,
    config: Mapping[str, Any],
) -> list[str]:
    specials = added_tokens(added)
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": specials,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": ignore_merges,
                "vocab": {text: number for number, text in enumerate(vocabulary)},
                "merges": [f"{a} {b}" for a, b in merges] if merges_as_text else [[a, b] for a, b in merges],
            },
        },
    )
    decoder = {str(token["id"]): {key: token[key] for key in token if key != "id"} for token in specials}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder} | dict(config))
    names = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str)}
    write_json(folder / "special_tokens_map.json", names)
    tokens = dict(enumerate(vocabulary)) | {number: text for number, text, _ in added}
    return [tokens[number] for number in range(max(tokens) + 1)]


def write_smollm2(folder: Path) -> list[str]:
    """SmolLM2: special tokens first, digits alone, merges as text, the template in tokenizer_config.json."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<jupyter_text>"]
    letters, merges = _byte_level()
    return _write_byte_level(
        folder,
        vocabulary=[*specials, *letters],
        merges=merges,
        added=[(number, text, True) for number, text in enumerate(specials)],
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level_step(use_regex=True)],
        },
        merges_as_text=True,
        config={
            "add_prefix_space": False,
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
            "chat_template": CHATML,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "tokenizer_class": "GPT2Tokenizer",
        },
    )


_LLAMA3_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)


def _begin_with(token: str, number: int) -> dict[str, Any]:
    def part(sequence: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": kind}}, {"Sequence": {"id": sequence, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": part("A", 0) + part("B", 1),
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def write_llama3(folder: Path) -> list[str]:
    letters, merges = _byte_level()
    start = len(letters)
    return _write_byte_level(
        folder,
        vocabulary=letters,
        merges=merges,
        added=[(start + number, text, True) for number, text in enumerate(_LLAMA3_SPECIALS)],
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(LLAMA3_PATTERN), _byte_level_step(use_regex=False)],
        },
        post_processor={
            "type": "Sequence",
            "processors": [_byte_level_step(use_regex=True), _begin_with("<|begin_of_text|>", start)],
        },
        merges_as_text=True,
        ignore_merges=True,
        config={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "chat_template": HEADERS,
            "clean_up_tokenization_spaces": True,
            "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def write_smollm3(folder: Path) -> list[str]:
    """SmolLM3: Llama 3's tokenizer with ChatML's tokens, and the template in a file of its own."""
    letters, merges = _byte_level()
    start = len(letters)
    specials = [
        ("<|begin_of_text|>", True),
        ("<|im_start|>", True),
        ("<|im_end|>", True),
        ("<think>", False),
        ("</think>", False),
        ("<tool_call>", False),
        ("</tool_call>", False),
        ("<|reserved_special_token_0|>", True),
    ]
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return _write_byte_level(
        folder,
        vocabulary=letters,
        merges=merges,
        added=[(start + number, text, special) for number, (text, special) in enumerate(specials)],
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(LLAMA3_PATTERN), _byte_level_step(use_regex=False)],
        },
        post_processor={"type": "TemplateProcessing", "single": _A, "pair": [*_A, *_B], "special_tokens": {}},
        ignore_merges=True,
        config={
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


_A = [{"Sequence": {"id": "A", "type_id": 0}}]
_B = [{"Sequence": {"id": "B", "type_id": 1}}]


def write_qwen(folder: Path) -> list[str]:
    """Qwen 2: no begin token; the template in tokenizer_config.json."""
    return _write_qwen(folder, (), {"chat_template": CHATML})


def write_qwen3(folder: Path) -> list[str]:
    """Qwen 3: tokens that are added and not special; named templates."""
    more = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    templates = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{# tools #}" + CHATML}]
    return _write_qwen(folder, more, {"chat_template": templates})


def _write_qwen(folder: Path, more: Sequence[str], config: Mapping[str, Any]) -> list[str]:
    letters, merges = _byte_level()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    added = [(text, True) for text in specials] + [(text, False) for text in more]
    return _write_byte_level(
        folder,
        vocabulary=letters,
        merges=merges,
        added=[(len(letters) + number, text, special) for number, (text, special) in enumerate(added)],
        normalizer={"type": "NFC"},
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(QWEN2_PATTERN), _byte_level_step(use_regex=False)],
        },
        post_processor=_byte_level_step(use_regex=False),
        config={
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 131072,
            "tokenizer_class": "Qwen2Tokenizer",
        }
        | dict(config),
    )


def write_tekken(folder: Path) -> list[str]:
    """Mistral Nemo: special tokens first, tekken's pattern."""
    specials = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "<SPECIAL_14>")
    letters, merges = _byte_level()
    return _write_byte_level(
        folder,
        vocabulary=[*specials, *letters],
        merges=merges,
        added=[(number, text, True) for number, text in enumerate(specials)],
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [_split(TEKKEN_PATTERN), _byte_level_step(use_regex=False)],
        },
        post_processor=_begin_with("<s>", 1),
        config={
            "add_bos_token": True,
            "add_eos_token": False,
            "add_prefix_space": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "chat_template": INST,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 131072,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


def write_tekken_alone(folder: Path) -> list[str]:
    """Devstral and others: Mistral's own tekken.json, and a chat template in a file."""
    _, merges = _byte_level()
    letters = _byte_letters()
    byte_of = {letter: byte for byte, letter in enumerate(letters)}
    learned = [bytes([byte]) for byte in range(256)]
    learned += [bytes(byte_of[letter] for letter in text) for text in _new(letters, merges)]
    specials = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
    specials += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>", "[PREFIX]", "[MIDDLE]", "[SUFFIX]")
    specials += ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
    count = len(specials) + 4  # of which the last are not named
    tokens = [*specials, *(f"<SPECIAL_{number}>" for number in range(len(specials), count))]
    write_json(
        folder / "tekken.json",
        {
            "config": {
                "pattern": TEKKEN_PATTERN,
                "num_vocab_tokens": len(learned) + 2,
                "default_vocab_size": count + len(learned),
                "default_num_special_tokens": count,
                "version": "v7",
            },
            "vocab": [
                {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": _utf8(text)}
                for rank, text in enumerate([*learned, b"not ", b"not used"])
            ],
            "special_tokens": [
                {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(specials)
            ],
        },
    )
    (folder / "chat_template.jinja").write_text(INST, encoding="utf-8")
    return [*tokens, *("".join(letters[byte] for byte in text) for text in learned)]


def _utf8(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def write_roberta(folder: Path) -> list[str]:
    """RoBERTa: GPT-2's rules, special tokens at both ends of the vocabulary."""
    first = ("<s>", "<pad>", "</s>", "<unk>")
    letters, merges = _byte_level()
    vocabulary = [*first, *letters, "<mask>"]
    special = [(vocabulary.index(text), text, True) for text in (*first, "<mask>")]
    return _write_byte_level(
        folder,
        vocabulary=vocabulary,
        merges=merges,
        added=special,
        pre_tokenizer=_byte_level_step(use_regex=True),
        post_processor={
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        merges_as_text=True,
        config={
            "add_prefix_space": False,
            "bos_token": "<s>",
            "cls_token": "<s>",
            "eos_token": "</s>",
            "sep_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "model_max_length": 512,
            "tokenizer_class": "RobertaTokenizer",
        },
    )


# ---- SentencePiece ----

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2

Piece = tuple[str, float, int]


def sentencepiece_model(
    pieces: Sequence[Piece],
    *,
    kind: int = BPE,
    add_dummy_prefix: bool = True,
    remove_extra_whitespaces: bool = False,
    charsmap: bytes = b"",
    ids: tuple[int, int, int, int] = (0, 1, 2, -1),
) -> bytes:
    """ModelProto of sentencepiece_model.proto; `ids` are those of unknown, begin, end and padding."""
    blocks = []
    for text, score, category in pieces:
        piece = _bytes(1, text.encode()) + _float(2, score)
        blocks.append(_bytes(1, piece if category == NORMAL else piece + _number(3, category)))
    unknown, begin, end, padding = ids
    trainer = _number(3, kind) + _number(4, len(pieces)) + _number(35, kind == BPE)
    trainer += _number(40, unknown) + _number(41, begin) + _number(42, end) + _number(43, padding)
    normalizer = _bytes(1, b"identity") + (_bytes(2, charsmap) if charsmap else b"")
    normalizer += _number(3, add_dummy_prefix) + _number(4, remove_extra_whitespaces) + _number(5, 1)
    return b"".join(blocks) + _bytes(2, trainer) + _bytes(3, normalizer)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


@cache
def _learned() -> list[Piece]:
    """Byte pieces, learned ones with the scores that sentencepiece gives them in BPE (the rank below zero), letters."""
    text = SENTENCES.replace(" ", "▁").replace("\n", "")
    words = re.findall(r"▁+[^▁\d]*|[^▁\d]+|\d", text)
    merges = _learn(words, MERGES)
    letters = [letter for letter, _ in Counter("▁" + text).most_common()]
    bytes_: list[Piece] = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    pieces = [*_new(letters, merges), *letters]
    return [*bytes_, *((piece, -float(rank), NORMAL) for rank, piece in enumerate(pieces))]


_LLAMA2_SPECIALS: list[Piece] = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
_LLAMA2_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": None,
    "clean_up_tokenization_spaces": False,
    "legacy": False,
    "model_max_length": 4096,
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizer",
}


def _decoder_entries(tokens: Iterable[tuple[int, str, bool]]) -> dict[str, Any]:
    return {str(token.pop("id")): token for token in added_tokens(tokens)}


def write_llama2(folder: Path) -> list[str]:
    """Llama 2: tokenizer.model, its special tokens in full in tokenizer_config.json."""
    pieces = [*_LLAMA2_SPECIALS, *_learned()]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    specials = _decoder_entries((number, text, True) for number, (text, _, _) in enumerate(_LLAMA2_SPECIALS))
    named = {
        f"{name}_token": {"__type": "AddedToken", **specials[number]}
        for number, name in (("0", "unk"), ("1", "bos"), ("2", "eos"))
    }
    config = _LLAMA2_CONFIG | {"added_tokens_decoder": specials, "chat_template": INST} | named
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    return [text for text, _, _ in pieces]


def write_llama2_fast(folder: Path) -> list[str]:
    """Llama 2 whose tokenizer.model was left out, as many fine-tuned ones are: tokenizer.json alone."""
    learned = _learned()
    pieces = [*_LLAMA2_SPECIALS, *learned]
    specials = [(number, text, True) for number, (text, _, _) in enumerate(_LLAMA2_SPECIALS)]
    _write_fast_llama2(folder, pieces, specials)
    config = _LLAMA2_CONFIG | {"added_tokens_decoder": _decoder_entries(specials), "chat_template": INST}
    write_json(folder / "tokenizer_config.json", config)
    return [text for text, _, _ in pieces]


def _write_fast_llama2(
    folder: Path,
    pieces: Sequence[Piece],
    added: Sequence[tuple[int, str, bool]],
) -> None:
    """What transformers makes of tokenizer.model: every way to split a piece in two is a merge, best piece first."""
    ids = {text: number for number, (text, _, _) in enumerate(pieces)}
    merges = [
        (text[:cut], text[cut:])
        for text, _, _ in sorted(pieces, key=lambda piece: -piece[1])
        for cut in sorted(range(1, len(text)), key=lambda cut: ids.get(text[:cut], 0))
        if text[:cut] in ids and text[cut:] in ids
    ]
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens(added),
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            },
            "pre_tokenizer": None,
            "post_processor": _begin_with("<s>", 1),
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": ids,
                "merges": [f"{a} {b}" for a, b in merges],
            },
        },
    )


def write_mistral(folder: Path) -> list[str]:
    """Mistral v0.3: tokenizer.model with control pieces of its own, tokenizer.json beside it."""
    own: list[Piece] = [(text, 0.0, CONTROL) for text in ("[INST]", "[/INST]", "[TOOL_CALLS]", "[control_8]")]
    learned = _learned()
    pieces = [*_LLAMA2_SPECIALS, *own, *learned]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    specials = [(number, text, True) for number, (text, _, _) in enumerate(pieces[:7])]
    _write_fast_llama2(folder, pieces, specials)
    config = _LLAMA2_CONFIG | {"added_tokens_decoder": _decoder_entries(specials), "chat_template": INST}
    write_json(folder / "tokenizer_config.json", config | {"add_prefix_space": True})
    return [text for text, _, _ in pieces]


def write_phi3(folder: Path) -> list[str]:
    """Phi 3: Llama 2's pieces, then eleven tokens in added_tokens.json, tokenizer_config.json and tokenizer.json."""
    learned = _learned()
    pieces = [*_LLAMA2_SPECIALS, *learned]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    names = ["<|endoftext|>", "<|assistant|>", *(f"<|placeholder{number}|>" for number in range(1, 5))]
    names += ["<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]
    extra = {name: len(pieces) + number for number, name in enumerate(names)}
    write_json(folder / "added_tokens.json", extra)
    added = [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", False)]
    added += [(number, name, True) for name, number in extra.items()]
    _write_fast_llama2(folder, pieces, added)
    config = _LLAMA2_CONFIG | {
        "added_tokens_decoder": _decoder_entries(added),
        "add_bos_token": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "chat_template": PHI3,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [extra["<|endoftext|>"], extra["<|end|>"]]})
    return [*(text for text, _, _ in pieces), *names]


def write_gemma(folder: Path) -> list[str]:
    """Gemma 2: no prefix space, tokens of several newlines and spaces that users' texts contain."""
    return _write_gemma(folder, {"chat_template": GEMMA})


def write_gemma3(folder: Path) -> list[str]:
    """Gemma 3: the same with its template in chat_template.json."""
    write_json(folder / "chat_template.json", {"chat_template": GEMMA})
    return _write_gemma(folder, {})


def _write_gemma(folder: Path, more: Mapping[str, Any]) -> list[str]:
    first: list[Piece] = [("<pad>", 0.0, CONTROL), ("<eos>", 0.0, CONTROL), ("<bos>", 0.0, CONTROL)]
    first += [("<unk>", 0.0, UNKNOWN)]
    own = ["<mask>", "[@BOS@]", "<unused0>", "<unused1>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n" * count for count in range(1, 5)] + ["▁" * count for count in range(2, 6)] + ["<table>", "</b>"]
    first += [(text, 0.0, USER_DEFINED) for text in (*own, *runs)]
    learned = [piece for piece in _learned() if piece[0] not in runs]
    pieces = [*first, *learned]
    model = sentencepiece_model(pieces, add_dummy_prefix=False, ids=(3, 2, 1, 0))
    (folder / "tokenizer.model").write_bytes(model)
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"}
    added = [(number, text, text in special) for number, (text, _, _) in enumerate(first)]
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": _decoder_entries(added),
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config | dict(more))
    return [text for text, _, _ in pieces]


# ---- WordPiece ----


def write_bert(folder: Path) -> list[str]:
    """BERT, uncased: vocab.txt and tokenizer.json, and how Sentence Transformers pool it."""
    words = Counter(re.findall(r"[a-z]+", SENTENCES.lower()))
    letters = sorted(
        {letter for letter in SENTENCES.lower() if not letter.isspace()} | set("abcdefghijklmnopqrstuvwxyz")
    )
    endings = ["ing", "ed", "er", "s", "est", "ly", "ness", "es"]
    tokens = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    tokens += [f"##{letter}" for letter in letters if letter.isalnum()]
    tokens += [word for word, _ in words.most_common() if len(word) > 1] + [f"##{ending}" for ending in endings]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    ids = {token: number for number, token in enumerate(tokens)}
    specials = [(ids[text], text, True) for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")]

    def special(text: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": kind}}

    single = [special("[CLS]", 0), *_A, special("[SEP]", 0)]
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added_tokens(specials),
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": True,
                "handle_chinese_chars": True,
                "strip_accents": None,
                "lowercase": True,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": single,
                "pair": [*single, *_B, special("[SEP]", 1)],
                "special_tokens": {
                    text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ("[CLS]", "[SEP]")
                },
            },
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": ids,
            },
        },
    )
    names = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    names["mask_token"] = "[MASK]"
    write_json(folder / "special_tokens_map.json", names)
    config = {
        "do_lower_case": True,
        **names,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
        "model_max_length": 512,
        "tokenizer_class": "BertTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        "word_embedding_dimension": 256,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    write_json(folder / "modules.json", modules)
    return tokens
