"""Prompts that fill the hole between two texts, for models trained on it; side thread of the worker.

The order is that of repository-level infilling in the report on Qwen2.5-Coder (arXiv 2409.12186), as llama-server has
it: other files, then what is before the hole, what is behind it, and what the filling begins with.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.domain.errors import NotSupported, PromptTooLong
from service.llama.model import Model
from service.llama.vocabulary import infill_tokens

_BETWEEN_FILES = "\n\n--- snip ---\n\n"  # for models without a token for it
# Names that the pattern wants and that nobody sends: llama-server's.
_PROJECT = "myproject\n"
_PRESENT_FILE = "filename\n"
_BEFORE_SHARE = 0.75  # of the room, where not everything before and behind the hole fits


def infill_prompt(
    model: Model, *, before: str, behind: str, begun: str, files: Sequence[tuple[str, str]], room: int
) -> list[int]:
    """At most `room` token ids. `files` are (name, text); the first of them are cut before the text around the hole.

    Raises NotSupported for a model without the tokens for it, PromptTooLong where `begun` alone leaves no room.
    """
    marks = infill_tokens(model)
    if marks is None:
        raise NotSupported(
            "This model was not trained to fill holes: its vocabulary has no tokens for it. Use another one.",
            param="model",
        )

    def words(text: str) -> list[int]:
        return model.tokenize(text, add_special=False, parse_special=False)

    filling = model.tokenize(begun, add_special=False, parse_special=True)
    first = [model.bos_token] if model.adds_bos else []
    left = room - len(first) - len(filling) - 3
    if left < 0:
        raise PromptTooLong(
            f"The beginning of what fills the hole is {len(filling)} tokens long, which leaves no room; shorten it.",
            param="prompt",
        )
    head, tail = words(before), words(behind)
    if len(head) + len(tail) > left:
        kept_head = min(len(head), max(int(left * _BEFORE_SHARE), left - len(tail)))
        head, tail = head[len(head) - kept_head :], tail[: left - kept_head]
    others = [] if marks.repository is None else [marks.repository, *words(_PROJECT)]
    for name, text in files:
        others += words(_BETWEEN_FILES) if marks.file is None else [marks.file, *words(f"{name}\n")]
        others += words(text)
    if marks.file is not None:
        others += [marks.file, *words(_PRESENT_FILE)]
    left -= len(head) + len(tail)
    others = others[max(0, len(others) - left) :]
    return [*others, *first, marks.prefix, *head, *filling, marks.suffix, *tail, marks.middle]
