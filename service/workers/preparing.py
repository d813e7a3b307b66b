"""The side thread of a worker: prompts to tokens, grammars to masks and drafts loaded, while the engine computes.

Templates and grammars come from strangers and may be slow; here they make only those wait who have sent one.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from service.domain.errors import InternalError, QuantryError
from service.engine.drafting import DraftModel
from service.engine.embeddings import token_lists
from service.engine.grammar import Constraint, GrammarCompiler
from service.engine.prompt import PromptRenderer
from service.llama.model import Model
from service.workers.protocol import Embed, Submit


@dataclass(frozen=True, slots=True)
class PreparedSubmit:
    """A request whose prompt is tokens and whose grammar is compiled."""

    message: Submit
    tokens: list[int]
    constraint: Constraint | None
    draft_model: DraftModel | None


@dataclass(frozen=True, slots=True)
class PreparedEmbed:
    """Texts that are tokens."""

    message: Embed
    texts: list[list[int]]


@dataclass(frozen=True, slots=True)
class Unprepared:
    """A request that cannot be carried out, and why."""

    message: Submit | Embed
    error: QuantryError


Prepared = PreparedSubmit | PreparedEmbed | Unprepared


class Preparer:
    """Takes Submit and Embed messages, hands on what the engine can take, in the same order."""

    def __init__(
        self, model: Model, hand_on: Callable[[Prepared], None], load_draft: Callable[[Path], DraftModel]
    ) -> None:
        """`hand_on` is called on the side thread, and `load_draft` where a request names a draft for the first time."""
        self._model = model
        self._load_draft = load_draft
        self._drafts: dict[str, DraftModel] = {}
        self._hand_on = hand_on
        self._messages: queue.SimpleQueue[Submit | Embed] = queue.SimpleQueue()
        self._grammars = GrammarCompiler(model)
        self._renderer = PromptRenderer(
            template=model.chat_template(),
            tokenize=model.tokenize,
            bos_token=model.bos_token,
            adds_bos=model.adds_bos,
            bos_text=model.piece(model.bos_token, special=True).decode("utf-8", "replace"),
            eos_text=model.piece(model.eos_token, special=True).decode("utf-8", "replace"),
            special_texts=model.special_texts(),
        )

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, message: Submit | Embed) -> None:
        """Prepare this when its turn comes."""
        self._messages.put(message)

    def _run(self) -> NoReturn:
        while True:
            message = self._messages.get()
            try:
                prepared = self._prepare(message)
            except QuantryError as error:
                prepared = Unprepared(message, error)
            except Exception:
                traceback.print_exc()
                prepared = Unprepared(
                    message, InternalError("The request could not be read; the server's log has details.")
                )
            self._hand_on(prepared)

    def _prepare(self, message: Submit | Embed) -> Prepared:
        if isinstance(message, Embed):
            return PreparedEmbed(message, token_lists(message.request, self._model))
        request = message.request
        tokens = self._renderer.tokens(request)
        constraint = None if request.grammar is None else self._grammars.compile(request.grammar)
        return PreparedSubmit(message, tokens, constraint, self._draft(message.draft_path))

    def _draft(self, path: str | None) -> DraftModel | None:
        if path is None:
            return None
        draft = self._drafts.get(path)
        if draft is None:
            draft = self._load_draft(Path(path))
            try:
                draft.check(self._model)
            except QuantryError:
                draft.close()
                raise
            self._drafts[path] = draft
        return draft
