"""Texts in, vectors out, beside the engine that generates: submit, cancel, step, close. One thread calls them all.

A step is one batch of many texts, each a sequence of its own, taken in turn from all requests; long texts go in in
pieces where the model allows it. Its context is made for the first request, so that nobody else pays for it.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.domain.errors import InternalError, InvalidParameter, NotSupported, PromptTooLong, QuantryError
from service.domain.generation import EmbeddingRequest, Embeddings, Failed
from service.domain.memory import embedding_batch_tokens
from service.llama.embedding import (
    EmbeddingContext,
    check_embeds,
    embedding_size,
    rank_separators,
    rank_template,
    ranks,
)
from service.llama.model import Model

_RANK_FIELDS = re.compile(r"(\{query\}|\{document\})")


@dataclass(slots=True, eq=False)
class _Request:
    """Everything the embedder holds for one request. Texts before `next` are done or in work."""

    id: int
    texts: list[list[int]]
    dimensions: int | None
    normalize: bool
    vectors: dict[int, bytes] = field(default_factory=dict)
    next: int = 0


@dataclass(slots=True, eq=False)
class _Text:
    """One text in work."""

    request: _Request
    index: int
    sequence: int
    computed: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.request.texts[self.index]


class Embedder:
    """Runs many embedding requests at once over one context of its own."""

    def __init__(
        self, model: Model, *, context_length: int, batch_tokens: int, threads: int, flash_attention: bool
    ) -> None:
        """`context_length` bounds one text, in tokens, as does the context that the model was trained with.

        A batch holds at most `batch_tokens`, or one longer text where the model has to see it whole.
        """
        self._model = model
        self.context_length = min(context_length, model.context_length or context_length)
        self._batch_tokens = embedding_batch_tokens(model.vocabulary_size, batch_tokens)
        self._threads = threads
        self._flash_attention = flash_attention
        self._size = embedding_size(model)
        self._ranks = ranks(model)
        self._context: EmbeddingContext | None = None
        self._free_sequences: list[int] = []
        self._requests: deque[_Request] = deque()  # with texts to begin; the first one's turn is next
        self._working: list[_Text] = []  # what the present batch computes; between steps, at most one unfinished text
        self._tail: list[int] | None = None
        self.steps = 0

    @property
    def is_idle(self) -> bool:
        """True when a step would do nothing."""
        return not self._requests and not self._working

    def use_threads(self, threads: int) -> None:
        """Compute with this many threads from the next step on."""
        self._threads = threads
        if self._context is not None:
            self._context.use_threads(threads)

    def submit(self, request_id: int, texts: list[list[int]], request: EmbeddingRequest) -> None:
        """Take the tokenized texts of a request, in its order.

        Raises PromptTooLong for a text over the context unless the request truncates, InvalidParameter for an empty
        text, for ids outside the vocabulary and for too many dimensions, NotSupported for models without embeddings.
        """
        self._check(request)
        if request.dimensions is not None and not 1 <= request.dimensions <= self._size:
            raise InvalidParameter(
                f"The vectors of this model have {self._size} dimensions; ask for at most that many.",
                param="dimensions",
            )
        if not texts:
            raise InvalidParameter("There is no text to embed; send at least one.", param="input")
        fitting = [self._fitting(tokens, request.truncate) for tokens in texts]
        self._requests.append(_Request(request_id, fitting, request.dimensions, request.normalize))

    def _check(self, request: EmbeddingRequest) -> None:
        check_embeds(self._model)
        if self._ranks and request.query is None:
            raise NotSupported(
                "This model ranks pairs of texts and gives no embeddings; use another one, or POST /v1/rerank.",
                param="model",
            )
        if not self._ranks and request.query is not None:
            raise NotSupported("This model does not rank texts; use a reranker.", param="model")

    def cancel(self, request_id: int) -> None:
        """Forget a request and free its cells; no event follows. Unknown ids are ignored: it may just have ended."""
        self._requests = deque(request for request in self._requests if request.id != request_id)
        for text in self._working:
            if text.request.id == request_id:
                self._release(text)
        self._working = [text for text in self._working if text.request.id != request_id]

    def step(self) -> list[tuple[int, Embeddings | Failed]]:
        """Compute one batch; the requests that ended in it."""
        if self.is_idle:
            return []
        self.steps += 1
        try:
            context = self._roomy_context()
        except QuantryError as error:
            return self._fail_all(error)
        batch = context.batch
        batch.clear()
        counts = [self._add(context, text) for text in self._working]
        self._begin_texts(context, counts)
        status = context.decode()
        if status != 0:
            return self._fail_working(status)
        ended: list[tuple[int, Embeddings | Failed]] = []
        for text, count in zip(tuple(self._working), counts, strict=True):
            text.computed += count
            if text.computed == len(text.tokens) and text in self._working:
                self._finish(context, text, ended)
        return ended

    def close(self) -> None:
        """Drop every request and the context; the model stays."""
        self._requests.clear()
        self._working.clear()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _fitting(self, tokens: list[int], truncate: bool) -> list[int]:
        if not tokens:
            raise InvalidParameter("A text is empty; send some text.", param="input")
        if min(tokens) < 0 or max(tokens) >= self._model.vocabulary_size:
            raise InvalidParameter(
                f"A text holds a token id outside of 0 to {self._model.vocabulary_size - 1}.", param="input"
            )
        if len(tokens) <= self.context_length:
            return tokens
        if not truncate:
            raise PromptTooLong(
                f"A text is {len(tokens)} tokens long and the context holds {self.context_length}. Shorten or "
                "split it, or load the model with a larger context.",
                param="input",
            )
        # Models that end a text with a token of theirs were trained to find it there.
        tail = self._ending() if tokens[-len(self._ending()) :] == self._ending() else []
        return tokens[: self.context_length - len(tail)] + tail

    def _ending(self) -> list[int]:
        """The tokens that the model puts behind every text: what two different texts end with alike."""
        if self._tail is None:
            one, other = (self._model.tokenize(text, add_special=True, parse_special=False) for text in ("a", "b"))
            shared = 0
            while shared < min(len(one), len(other)) and one[-1 - shared] == other[-1 - shared]:
                shared += 1
            self._tail = one[len(one) - shared :]
        return self._tail

    def _roomy_context(self) -> EmbeddingContext:
        """The context; a larger one takes its place when the next text does not fit into it."""
        context = self._context
        if self._working:
            assert context is not None
            return context
        longest = len(self._requests[0].texts[self._requests[0].next])
        if context is not None and (longest <= context.batch.capacity or self._can_split(context, longest)):
            return context
        if context is None:
            context = self._new_context(cells=self._batch_tokens, batch_tokens=self._batch_tokens)
        if longest > context.batch.capacity and not self._can_split(context, longest):
            # Half as much again as asked for, so that growing texts do not make a context each.
            length = min(self.context_length, longest + longest // 2)
            splits = context.splits_texts
            context = self._new_context(
                cells=length + self._batch_tokens, batch_tokens=self._batch_tokens if splits else length
            )
        return context

    def _can_split(self, context: EmbeddingContext, length: int) -> bool:
        return context.splits_texts and length + context.batch.capacity <= context.cells

    def _new_context(self, *, cells: int, batch_tokens: int) -> EmbeddingContext:
        if self._context is not None:
            self._context.close()
            self._context = None
        self._context = EmbeddingContext(
            self._model,
            cells=cells,
            batch_tokens=batch_tokens,
            threads=self._threads,
            flash_attention=self._flash_attention,
        )
        self._free_sequences = list(range(self._context.sequences))
        return self._context

    def _begin_texts(self, context: EmbeddingContext, counts: list[int]) -> None:
        """Fill the batch with texts that have not begun, one from each request in turn."""
        while self._requests and self._free_sequences and context.batch.size < context.batch.capacity:
            request = self._requests[0]
            length = len(request.texts[request.next])
            room = context.batch.capacity - context.batch.size
            unfinished = any(
                text.computed + count < len(text.tokens) for text, count in zip(self._working, counts, strict=True)
            )
            # One text at a time goes in in pieces: that bounds the cells.
            if length > room and (unfinished or not self._can_split(context, length)):
                return
            text = _Text(request, request.next, self._free_sequences.pop())
            self._working.append(text)
            counts.append(self._add(context, text))
            request.next += 1
            self._requests.popleft()
            if request.next < len(request.texts):
                self._requests.append(request)

    def _add(self, context: EmbeddingContext, text: _Text) -> int:
        """Put as much of a text into the batch as fits; how much."""
        batch = context.batch
        count = min(len(text.tokens) - text.computed, batch.capacity - batch.size)
        piece = text.tokens[text.computed : text.computed + count]
        batch.add(piece, text.computed, text.sequence, logits=count)
        return count

    def _finish(self, context: EmbeddingContext, text: _Text, ended: list[tuple[int, Embeddings | Failed]]) -> None:
        request = text.request
        vector = _shaped(context.vector(text.sequence), request)
        self._release(text)
        self._working.remove(text)
        if not np.isfinite(vector).all():
            error = InternalError("The model gave no numbers for this text; use another level of the model.")
            ended.append((request.id, Failed(error.code, error.message)))
            self.cancel(request.id)
            return
        request.vectors[text.index] = vector.astype("<f4").tobytes()
        if len(request.vectors) == len(request.texts):
            vectors = tuple(request.vectors[index] for index in range(len(request.texts)))
            ended.append((request.id, Embeddings(vectors, sum(map(len, request.texts)))))

    def _release(self, text: _Text) -> None:
        if self._context is not None:
            self._context.forget(text.sequence)
        self._free_sequences.append(text.sequence)

    def _fail_working(self, status: int) -> list[tuple[int, Embeddings | Failed]]:
        error = InternalError(f"llama.cpp could not compute this batch (status {status}); send the request again.")
        failed = dict.fromkeys(text.request.id for text in self._working)
        for request_id in failed:
            self.cancel(request_id)
        return [(request_id, Failed(error.code, error.message)) for request_id in failed]

    def _fail_all(self, error: QuantryError) -> list[tuple[int, Embeddings | Failed]]:
        failed = [request.id for request in self._requests]
        self._requests.clear()
        return [(request_id, Failed(error.code, error.message, error.param)) for request_id in failed]


def token_lists(request: EmbeddingRequest, model: Model) -> list[list[int]]:
    """The inputs of a request as token ids, texts with the tokens that the model wants around them. Any thread."""
    if request.query is not None:
        return _pairs(request.query, request, model)
    return [
        model.tokenize(text, add_special=True, parse_special=False) if isinstance(text, str) else list(text)
        for text in request.inputs
    ]


def _pairs(query: str, request: EmbeddingRequest, model: Model) -> list[list[int]]:
    """Query and document together, for each document; as llama-server puts them together."""
    documents = [text for text in request.inputs if isinstance(text, str)]
    template = rank_template(model)
    if template is None:
        begin, between, behind = rank_separators(model)
        asked = model.tokenize(query, add_special=False, parse_special=False)
        return [
            begin + asked + between + model.tokenize(text, add_special=False, parse_special=False) + behind
            for text in documents
        ]
    # The marks of the template are special tokens, and texts are never to become any.
    pieces = _RANK_FIELDS.split(template)
    found = []
    for text in documents:
        tokens: list[int] = []
        for piece in pieces:
            words = {"{query}": query, "{document}": text}.get(piece)
            tokens += model.tokenize(piece if words is None else words, add_special=False, parse_special=words is None)
        found.append(tokens)
    return found


def _shaped(vector: NDArray[np.float32], request: _Request) -> NDArray[np.float32]:
    """The first `dimensions` numbers, scaled to length 1 where asked for; a vector of zeros stays one."""
    kept = vector[: request.dimensions]
    length = float(np.linalg.norm(kept.astype(np.float64)))
    return (kept / length).astype(np.float32) if request.normalize and length > 0 else kept
