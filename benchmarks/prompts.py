"""What the workloads ask: prompts that follow from a seed; all sides get the same, each repeat gets new ones.

Long texts are passages of the built-in evaluation text; a seed in their first line keeps an earlier repeat's cache from
helping.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path

_TEXT = Path(__file__).resolve().parents[1] / "service" / "store" / "texts" / "evaluation.txt"

_WHO = ("a fisherman", "an old teacher", "a young painter", "two sisters", "a clock maker", "a ship's cook", "a farmer")
_WHERE = (
    "on a small island",
    "in a mountain village",
    "in a harbour town",
    "at the edge of a desert",
    "by a wide river",
)
_WHAT = ("a letter that came too late", "a lost key", "the first snow", "a strange map", "a broken bridge", "a promise")


@functools.cache
def _words() -> tuple[str, ...]:
    return tuple(_TEXT.read_text(encoding="utf-8").split())


def passage(seed: int, words: int) -> str:
    """A text of about `words` words of English prose whose first line differs for every seed."""
    start = random.Random(f"passage {seed}").randrange(0, len(_words()) - words)
    return f"Notes, edition {seed}. " + " ".join(_words()[start : start + words - 3])


def question(seed: int, number: int) -> str:
    """Request `number` of a run: some thirty words that ask for a long answer."""
    chance = random.Random(f"question {seed} {number}")
    return (
        f"Story {seed}-{number}: write a long story about {chance.choice(_WHO)} {chance.choice(_WHERE)} and "
        f"{chance.choice(_WHAT)}, in the year {chance.randrange(1100, 2000)}. Describe the weather, the people, what "
        "they said, and how it ended."
    )


def long_prompt(seed: int) -> str:
    """About 4,000 tokens of SmolLM2's vocabulary, and a question at the end."""
    text = " ".join(_words()[:2800])
    return f"Edition {seed}. Read this.\n\n{text}\n\nWhat is it about?"


_NOTE = (
    "The harbour office opens at seven in the morning and closes at six in the evening. Boats that arrive later must "
    "wait at the outer wall until the next day. Each captain shows the papers of the boat, the list of the crew and "
    "the list of the goods. Fresh fish is weighed first, then fruit, then everything else. The fee is four coins for "
    "a small boat and nine coins for a large one. Captains who pay for a whole year get a fifth of the fee back in "
    "winter, when the ice keeps most of the boats at home."
)
_RULES = (
    "The library lends books for three weeks and films for one week. A reader can take ten books home at the same "
    "time. Whoever needs a book for longer may ask for two more weeks, as long as nobody else is waiting for it. Old "
    "maps and newspapers are read in the quiet room on the second floor. Food stays outside, and so do wet umbrellas. "
    "Children under twelve come with somebody who is older. On the last Friday of each month the library is open "
    "until midnight, and an author reads from a new book in the large hall."
)


def copying(seed: int) -> list[str]:
    """Requests whose answers repeat most of the text that they were given, as far as a small model can follow."""
    misspelt = _RULES.replace("library lends", "libary lends").replace("second floor", "secund floor")
    return [
        f"Copy the following text exactly, word for word. Write nothing else.\n\nNotice {seed}. {_NOTE}",
        f"Correct the two spelling mistakes in this text. Change nothing else.\n\nNotice {seed}. {misspelt}",
        f"Replace the word 'coins' by 'crowns' in this text. Change nothing else.\n\nNotice {seed}. {_NOTE}",
    ]


SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "minItems": 6,
            "maxItems": 6,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "minLength": 4, "maxLength": 24},
                    "age": {"type": "integer", "minimum": 1, "maximum": 99},
                    "profession": {"type": "string", "enum": ["fisher", "teacher", "painter", "farmer", "cook"]},
                    "address": {
                        "type": "object",
                        "properties": {
                            "street": {"type": "string", "minLength": 6, "maxLength": 30},
                            "town": {"type": "string", "minLength": 4, "maxLength": 20},
                        },
                        "required": ["street", "town"],
                        "additionalProperties": False,
                    },
                },
                "required": ["name", "age", "profession", "address"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
"""Long enough, and closed enough, that an answer has 200 tokens and more."""


def people(seed: int, number: int) -> str:
    """The request that goes with SCHEMA."""
    return f"List {seed}-{number}: invent six people of a harbour town. Answer in JSON: name, age, profession, address."
