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

from service.domain.errors import InternalError, InvalidParameter, QuantryError
from service.domain.generation import Failed
from service.engine.answer import Reading
from service.engine.drafting import DraftModel
from service.engine.embeddings import token_lists
from service.engine.grammar import Constraint, GrammarCompiler
from service.engine.prompt import PromptRenderer
from service.engine.reading import Reader
from service.frames import BadFrame
from service.llama.model import Model
from service.workers.answering import Answerer
from service.workers.protocol import Answered, Ask, AskFailed, Embed, Submit


@dataclass(frozen=True, slots=True)
class PreparedSubmit:
    """A request whose prompt is tokens and whose grammars are compiled; the rest is as `Engine.submit` takes it."""

    message: Submit
    tokens: list[int]
    constraint: Constraint | None
    draft_model: DraftModel | None
    reading: Reading | None = None
    call_constraint: Constraint | None = None


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
    """Takes Submit and Embed messages, hands on what the engine can take, in the same order; answers Ask messages."""

    def __init__(
        self,
        model: Model,
        hand_on: Callable[[Prepared], None],
        load_draft: Callable[[Path], DraftModel],
        send: Callable[[Answered | AskFailed], None],
        context_length: int,
    ) -> None:
        """`hand_on` is called on the side thread, and `load_draft` where a request names a draft for the first time.

        `send` sends an answer to the server. `context_length` is that of one request, in tokens.
        """
        self._model = model
        self._load_draft = load_draft
        self._drafts: dict[str, DraftModel] = {}
        self._hand_on = hand_on
        self._send = send
        self._messages: queue.SimpleQueue[Submit | Embed | Ask] = queue.SimpleQueue()
        self._grammars = GrammarCompiler(model)
        self._renderer = PromptRenderer.of(model)
        self._reader = Reader(model, self._renderer, self._grammars)
        self._answerer = Answerer(model, self._renderer, context_length)

    def start(self) -> None:
        """Begin; the thread ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, message: Submit | Embed | Ask) -> None:
        """Prepare or answer this when its turn comes."""
        self._messages.put(message)

    def _run(self) -> NoReturn:
        while True:
            message = self._messages.get()
            if isinstance(message, Ask):
                self._answer(message)
                continue
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

    def _answer(self, message: Ask) -> None:
        error: QuantryError
        try:
            self._send(Answered(message.id, self._answerer.answer(message.question)))
            return
        except BadFrame:
            error = InvalidParameter("The answer would be too long to send; ask about less text at a time.")
        except QuantryError as refusal:
            error = refusal
        except Exception:
            traceback.print_exc()
            error = InternalError("The question could not be answered; the server's log has details.")
        self._send(AskFailed(message.id, Failed(error.code, error.message, error.param)))

    def _prepare(self, message: Submit | Embed) -> Prepared:
        if isinstance(message, Embed):
            return PreparedEmbed(message, token_lists(message.request, self._model))
        request = message.request
        self._answerer.check_ids(request.prompt_tokens, "prompt")
        prompt = self._renderer.prompt(request)
        reader = self._reader_of(request.template)
        constraint, call_constraint = reader.constraints(request, prompt)
        reading = reader.reading(request, prompt)
        draft = self._draft(message.draft_path)
        return PreparedSubmit(message, prompt.tokens, constraint, draft, reading, call_constraint)

    def _reader_of(self, template: str | None) -> Reader:
        """How answers are read that follow prompts by the model's own template or by another."""
        if template is None:
            return self._reader
        return Reader(self._model, self._renderer.with_template(template), self._grammars)

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
