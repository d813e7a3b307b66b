"""A text as windows of tokens, cut as llama-perplexity and llama-imatrix cut it. In the job's child.

Knows the tokenizer and the size of a window, nothing of what is computed on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidParameter

if TYPE_CHECKING:
    from service.llama.model import Model

Windows = NDArray[np.int32]
"""Token ids, shape (chunks, window)."""

_SMALLEST_WINDOW = 8  # tokens; half of them are scored


@dataclass(frozen=True, slots=True)
class Text:
    """A text file with digest `digest`, and how it is cut: `chunks` windows (None: all) of `window` tokens."""

    path: Path
    digest: str
    window: int
    chunks: int | None

    def cut(self, model: Model) -> Windows:
        """Its windows. Raises InvalidParameter when it is too short."""
        return cut_windows(model, read_text(self.path), window=self.window, chunks=self.chunks)


def read_text(path: Path) -> str:
    """The text at `path`, without the newline at its end: the tools take that one off as well."""
    return path.read_bytes().decode("utf-8", "replace").removesuffix("\n")


def cut_windows(model: Model, text: str, *, window: int, chunks: int | None) -> Windows:
    """The first `chunks` windows of the text (None: all), what does not fill a window left out.

    The whole text is tokenized as one. Where the model wants a BOS token, it takes the place of each window's first
    one. Raises InvalidParameter, with how much is needed, when not even one window is filled.
    """
    if window < _SMALLEST_WINDOW:
        raise InvalidParameter(f"A window needs {_SMALLEST_WINDOW} tokens at least; use 512.", param="window")
    tokens = np.array(model.tokenize(text, add_special=True, parse_special=False), dtype=np.int32)
    count = len(tokens) // window
    if count == 0:
        each = len(text) / len(tokens) if len(tokens) else 4.0  # characters
        raise InvalidParameter(
            f"The text has {len(tokens)} tokens and one window needs {window}, about {round(window * each)} characters;"
            " use a longer text or a smaller window.",
            param="text",
        )
    windows = tokens[: count * window].reshape(count, window)[:chunks].copy()
    if model.adds_bos:
        windows[:, 0] = model.bos_token
    return windows
