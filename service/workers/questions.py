"""What the server asks a worker about words and tokens, beside generating: plain values that cross the channel.

Only a worker has a vocabulary and a chat template. Its side thread answers, so that neither the engine nor the server's
event loop is held up.
"""

from __future__ import annotations

import msgspec

from service.domain.generation import GenerationRequest


class Tokenize(msgspec.Struct, tag="tokenize", frozen=True):
    """Texts, and token ids as they are, one after another, to token ids. Answered by Tokens.

    `add_special` adds what the model wants around the first of them; `parse_special` lets texts name special tokens.
    """

    parts: tuple[str | int, ...]
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(msgspec.Struct, tag="detokenize", frozen=True):
    """Token ids to text, special tokens as they are written. Answered by Text."""

    tokens: tuple[int, ...]


class Render(msgspec.Struct, tag="render", frozen=True):
    """The prompt that a request becomes. Answered by Rendered."""

    request: GenerationRequest


class InfillFile(msgspec.Struct, frozen=True):
    """Another file of the project, for context."""

    text: str
    name: str = "tmp"


class Infill(msgspec.Struct, tag="infill", frozen=True):
    """The prompt that fills the hole between two texts, with `prompt` as the beginning of what fills it.

    `reserved` tokens of the context are left free for the answer. Answered by Tokens.
    """

    prefix: str
    suffix: str
    files: tuple[InfillFile, ...] = ()
    prompt: str = ""
    reserved: int = 0


class Describe(msgspec.Struct, tag="describe", frozen=True):
    """What the file says of its template and its special tokens. Answered by Description."""


class Tokens(msgspec.Struct, tag="tokens", frozen=True):
    """Token ids; `pieces` are their bytes, where asked for."""

    tokens: tuple[int, ...]
    pieces: tuple[bytes, ...] = ()


class Text(msgspec.Struct, tag="text", frozen=True):
    """A text."""

    text: str


class Rendered(msgspec.Struct, tag="rendered", frozen=True):
    """A prompt as text and as the token ids that the model reads."""

    text: str
    tokens: tuple[int, ...]


class Description(msgspec.Struct, tag="description", frozen=True):
    """`chat_template` is None, and a token's text empty, where the file has none. `infills`: it can fill holes."""

    chat_template: str | None
    bos_text: str
    eos_text: str
    takes_tools: bool
    thinks: bool
    infills: bool


Question = Tokenize | Detokenize | Render | Infill | Describe
Answer = Tokens | Text | Rendered | Description
