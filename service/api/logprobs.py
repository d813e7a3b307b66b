"""Log-probabilities on the wire, for every dialect. Built for each token of a stream: plain dictionaries, no pydantic.

A token is bytes and may end within a character; such bytes are written as `\\xe2`, and the field `bytes` has them all.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from service.domain.generation import TokenChance, TokenLogprob


def entries(drawn: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Tokens as OpenAI's chat route, Ollama and quantry itself write them."""
    return [{**_entry(token), "top_logprobs": [_entry(chance) for chance in token.top]} for token in drawn]


class TokenColumns:
    """The same as OpenAI's older completions route writes them: a column for each figure.

    One for each choice: `text_offset` counts characters from the beginning of the prompt, from chunk to chunk.
    """

    def __init__(self, prompt: str) -> None:
        self._offset = len(prompt)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, drawn: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens of this choice."""
        offsets = []
        for token in drawn:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.token))
        return {
            "tokens": [_key(token.token) for token in drawn],
            "token_logprobs": [token.logprob for token in drawn],
            "top_logprobs": [_alternatives(token) for token in drawn],
            "text_offset": offsets,
        }


def _entry(chance: TokenChance | TokenLogprob) -> dict[str, Any]:
    return {
        "token": chance.token.decode("utf-8", "backslashreplace"),
        "logprob": chance.logprob,
        "bytes": list(chance.token),
    }


def _alternatives(token: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the drawn one where it is none of them."""
    found = {_key(chance.token): chance.logprob for chance in token.top}
    return found | {_key(token.token): token.logprob}


def _key(token: bytes) -> str:
    """Distinct for distinct tokens, broken characters included."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return f"bytes:{token.decode('ascii', 'backslashreplace')}"
