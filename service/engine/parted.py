"""An answer with parts and what is forced on it: the end of its thinking, its grammars. On the engine's thread."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InvalidGrammar
from service.engine.answer import AnswerStream, Part, Reading
from service.engine.grammar import Constraint
from service.llama.model import Model


class PartedAnswer:
    """The parts of one answer as they come, and what is forced on it between them.

    A grammar holds for what follows the thinking. Thinking that takes too long is ended, token by token.
    """

    def __init__(
        self, reading: Reading, stream: AnswerStream, constraint: Constraint | None, call_constraint: Constraint | None
    ) -> None:
        """`constraint` is for the whole answer, `call_constraint` for calls once one has begun."""
        self.stream = stream
        self.thought_tokens = 0
        self.was_thought = False  # the last token
        self.constraint: Constraint | None = None  # that holds now
        self._reading = reading
        self._waiting = constraint  # until the thinking is over
        self._call_constraint = call_constraint
        self._forced: deque[int] = deque()
        self._limit_thinking()
        if constraint is not None and not stream.is_thinking:
            self._forced.extend(reading.begin)
            if reading.start is None and not self._forced:
                self._hold([])

    def steer(self, logits: NDArray[np.float32], model: Model) -> None:
        """Write -inf over what may not come next for the sake of the parts; `constraint` comes on top."""
        if self._forced:
            logits.fill(-np.inf)
            logits[self._forced[0]] = 0.0
        elif self._waiting is not None:
            if self.stream.is_thinking:
                logits[model.end_tokens] = -np.inf
            else:
                # Thinking or the answer: only one token begins the former.
                start = self._reading.start
                assert start is not None
                kept = logits[start]
                self._waiting.mask(logits)
                logits[start] = kept

    def take(self, token: int, model: Model) -> list[Part]:
        """Take the token that was drawn; the parts that are final. Raises InvalidGrammar."""
        was_thinking, was_forced = self.stream.is_thinking, bool(self._forced)
        if was_forced:
            self._forced.popleft()
        parts = self.stream.push(self._reading.shown.get(token) or model.piece(token))
        is_thinking = self.stream.is_thinking
        self.was_thought = was_thinking or is_thinking
        if self.was_thought:
            self.thought_tokens += 1
            self._limit_thinking()
        if self._waiting is not None and not is_thinking:
            self._end_wait(token, model, was_thinking=was_thinking, was_forced=was_forced)
        elif self._call_constraint is not None and (text := self.stream.call_so_far) is not None:
            constraint, self._call_constraint = self._call_constraint, None
            # A call that was begun in another way than the book's goes on as it is.
            if all(constraint.accept(each) for each in model.tokenize(text, add_special=False, parse_special=True)):
                self.constraint = constraint
        return parts

    def _end_wait(self, token: int, model: Model, *, was_thinking: bool, was_forced: bool) -> None:
        """The answer begins, or what stands between it and the thinking goes on."""
        if was_thinking:
            # Some text of the thinking's last token may be the answer's.
            begun = self.stream.new_answer.lstrip()
            self._forced.clear()
            if begun:
                self._hold(model.tokenize(begun, add_special=False, parse_special=False))
                return
            self._forced.extend(self._reading.after)
        if not self._forced:
            self._hold([] if was_thinking or was_forced else [token])

    def _hold(self, tokens: list[int]) -> None:
        """From now on the answer is held to its grammar, which takes the tokens that are there already."""
        self.constraint, self._waiting = self._waiting, None
        if self.constraint is not None and not all(map(self.constraint.accept, tokens)):
            raise InvalidGrammar(
                f"The answer did not begin as its grammar demands ({self.constraint.error or 'no reason given'}). "
                "Send the request again.",
                param="grammar",
            )

    def _limit_thinking(self) -> None:
        limit = self._reading.max_thinking_tokens
        if limit is not None and self.thought_tokens >= limit and self.stream.is_thinking and not self._forced:
            self._forced.extend(self._reading.close)
