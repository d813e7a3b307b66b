"""WordPiece (BERT) from tokenizer.json or vocab.txt.

Runs in job children. BERT marks pieces within words ("##ing"); llama.cpp's marks those that begin one ("▁walk").
"""

from __future__ import annotations

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.fields import Field
from service.gguf.header import MAX_TOKENS
from service.gguf.vocabulary.byte_pair import kind_of
from service.gguf.vocabulary.definition import AddedToken, Definition
from service.gguf.vocabulary.tokens import Kind, Tokens, encoded, padded_size

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_piece_fields(definition: Definition, size: int) -> tuple[list[Field], int]:
    """Fields and the number of tokens; `size` as the model's configuration has it. Raises InvalidModel."""
    added = {definition.pieces.get(token.text, token.number): token for token in definition.added}
    tokens = Tokens.of(padded_size([*definition.pieces.values(), *added], size))
    tokens.texts = [b"\xe2\x96\x81" + unused for unused in tokens.texts]
    for text, number in definition.pieces.items():
        tokens.put(number, _begun(text), Kind.NORMAL)
    for number, token in added.items():
        kind = kind_of(token, token.text)
        tokens.put(number, token.text if kind is Kind.CONTROL else _begun(token.text), kind)
    fields = [
        Field("tokenizer.ggml.model", "str", "bert"),
        # Read for BPE only; this is what llama.cpp's converter writes for BERT's uncased English vocabulary.
        Field("tokenizer.ggml.pre", "str", "jina-v2-en"),
        *tokens.fields(scores=False),
    ]
    return fields, len(tokens)


def listed_definition(files: Files) -> Definition | None:
    """A definition from vocab.txt, one token a line; None without that file. Raises InvalidModel."""
    content = files.text("vocab.txt")
    if content is None:
        return None
    lines = content.splitlines() if "\r" in content else content.split("\n")
    while lines and not lines[-1]:
        lines.pop()
    if not 0 < len(lines) <= MAX_TOKENS:
        raise InvalidModel("vocab.txt holds no vocabulary; download it again.")
    pieces = {line: number for number, line in enumerate(lines)}
    added = [AddedToken(pieces[text], text, special=True, normalized=False) for text in _SPECIAL if text in pieces]
    config = files.json("tokenizer_config.json") or {}
    normalizer = {
        "type": "BertNormalizer",
        "lowercase": config.get("do_lower_case") is not False,
        "strip_accents": config.get("strip_accents"),
    }
    return Definition("WordPiece", pieces, (), tuple(added), False, False, False, (normalizer,), (), ())


def _begun(text: str) -> bytes:
    return encoded(text[2:] if text.startswith("##") else f"▁{text}")
