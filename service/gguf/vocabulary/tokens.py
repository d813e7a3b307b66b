"""What a vocabulary is made of: tokens with their kinds and scores, checked as llama.cpp needs them to be.

Runs in job children. Knows nothing of the files that they come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from service.domain.errors import InvalidModel
from service.gguf.fields import Field
from service.gguf.header import MAX_TOKENS

MAX_TOKEN_BYTES = 1 << 16


class Kind(IntEnum):
    """GGUF's token types; SentencePiece numbers its pieces' types the same way."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Key-value pairs `tokenizer.*` of a GGUF file, and how many tokens they hold."""

    fields: tuple[Field, ...]
    size: int


@dataclass(slots=True)
class Tokens:
    """Tokens by id, of which those that no file names are `[PAD<id>]`, unused, as llama.cpp's converter calls them."""

    texts: list[bytes]
    kinds: list[Kind]
    scores: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, size: int) -> Tokens:
        """`size` unused tokens. Raises InvalidModel when those are none or too many."""
        if not 0 < size <= MAX_TOKENS:
            raise InvalidModel(
                f"config.json says that there are {size} tokens; a vocabulary has 1 to {MAX_TOKENS}. Download it again."
            )
        return cls([b"[PAD%d]" % number for number in range(size)], [Kind.UNUSED] * size, [-10000.0] * size)

    def __len__(self) -> int:
        return len(self.texts)

    def put(self, number: int, text: str | bytes, kind: Kind, score: float = 0.0) -> None:
        """Sets a token. Raises InvalidModel when its id is outside of the vocabulary."""
        if not 0 <= number < len(self.texts):
            raise InvalidModel(
                f"The tokenizer has a token of id {number}, and the model's vocabulary has {len(self.texts)} tokens; "
                "the tokenizer's files and config.json belong to different models."
            )
        self.texts[number] = encoded(text) if isinstance(text, str) else text
        self.kinds[number] = kind
        self.scores[number] = score

    def fields(self, *, scores: bool) -> list[Field]:
        """The three arrays, or two without scores. Raises InvalidModel for tokens that llama.cpp would stop at."""
        self._check()
        fields = [Field("tokenizer.ggml.tokens", "arr[str]", self.texts)]
        if scores:
            fields.append(Field("tokenizer.ggml.scores", "arr[f32]", self.scores))
        fields.append(Field("tokenizer.ggml.token_type", "arr[i32]", [int(kind) for kind in self.kinds]))
        return fields

    def _check(self) -> None:
        """llama.cpp aborts when two tokens have one text; it reads texts up to a zero byte."""
        seen: dict[bytes, int] = {}
        for number, text in enumerate(self.texts):
            if len(text) > MAX_TOKEN_BYTES:
                raise InvalidModel(f"The tokenizer's token {number} has more than {MAX_TOKEN_BYTES} bytes.")
            read = text.split(b"\0", 1)[0] or b"[EMPTY_%d]" % number
            other = seen.setdefault(read, number)
            if other != number:
                raise InvalidModel(
                    f"The tokenizer's tokens {other} and {number} have the same text, which llama.cpp cannot load; "
                    "download the tokenizer's files again."
                )


def encoded(text: str) -> bytes:
    """UTF-8. Raises InvalidModel for half surrogate pairs, which JSON can spell."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidModel("A token of the tokenizer is no valid text; download its files again.") from None


def looks_special(text: str) -> bool:
    """Tokens that steer a model although their file does not call them special, as llama.cpp's converter knows them."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))  # noqa: RUF001
        or (text.startswith("<unused") and text.endswith(">"))
    )


def padded_size(named: Sequence[int], size: int) -> int:
    """`size`, or one more than the largest id where the model does not say how many tokens it has (0)."""
    return size or max(named, default=-1) + 1
