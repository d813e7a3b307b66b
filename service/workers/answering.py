"""Answers to the server's questions about words and tokens; side thread of the worker. Computes nothing."""

from __future__ import annotations

from service.domain.errors import InvalidParameter
from service.engine.infill import infill_prompt
from service.engine.prompt import PromptRenderer
from service.llama.model import Model
from service.llama.vocabulary import infill_tokens, written
from service.workers.questions import (
    Answer,
    Describe,
    Description,
    Detokenize,
    Infill,
    Question,
    Render,
    Rendered,
    Text,
    Tokenize,
    Tokens,
)


class Answerer:
    """Knows one model's vocabulary and template."""

    def __init__(self, model: Model, renderer: PromptRenderer, context_length: int) -> None:
        """`context_length` bounds prompts that are made to fit, in tokens."""
        self._model = model
        self._renderer = renderer
        self._context_length = context_length

    def answer(self, question: Question) -> Answer:
        """Raises what the question's text, template or ids give reason for: InvalidParameter, NoChatTemplate, ..."""
        match question:
            case Tokenize():
                tokens = self._tokens(question)
                pieces = written(self._model, tokens) if question.with_pieces else ()
                return Tokens(tuple(tokens), tuple(pieces))
            case Detokenize():
                self.check_ids(question.tokens, "tokens")
                return Text(b"".join(written(self._model, question.tokens)).decode("utf-8", "replace"))
            case Render():
                self.check_ids(question.request.prompt_tokens, "prompt")
                prompt = self._renderer.prompt(question.request)
                return Rendered(self._renderer.text(question.request), tuple(prompt.tokens))
            case Infill():
                tokens = infill_prompt(
                    self._model,
                    before=question.prefix,
                    behind=question.suffix,
                    begun=question.prompt,
                    files=[(file.name, file.text) for file in question.files],
                    # A quarter of the context at least is for what is there already.
                    room=self._context_length - min(question.reserved, self._context_length * 3 // 4),
                )
                return Tokens(tuple(tokens))
            case Describe():
                return self._description()

    def check_ids(self, tokens: tuple[int, ...], param: str) -> None:
        """Raise InvalidParameter for an id outside of the vocabulary."""
        if tokens and not 0 <= min(tokens) <= max(tokens) < self._model.vocabulary_size:
            raise InvalidParameter(
                f"{param}: this model's token ids go from 0 to {self._model.vocabulary_size - 1}; send only those.",
                param=param,
            )

    def _tokens(self, question: Tokenize) -> list[int]:
        found: list[int] = []
        adds = question.add_special
        for part in question.parts:
            if isinstance(part, str):
                found += self._model.tokenize(part, add_special=adds, parse_special=question.parse_special)
            else:
                self.check_ids((part,), "content")
                found.append(part)
            adds = False
        return found

    def _description(self) -> Description:
        model, form = self._model, self._renderer.format
        bos, eos = (self._written(token) for token in (model.bos_token, model.eos_token))
        return Description(
            chat_template=model.chat_template(),
            bos_text=bos,
            eos_text=eos,
            takes_tools=form.calls.explained,
            thinks=form.thinking is not None,
            infills=infill_tokens(model) is not None,
        )

    def _written(self, token: int) -> str:
        if not 0 <= token < self._model.vocabulary_size:
            return ""
        return written(self._model, [token])[0].decode("utf-8", "replace")
