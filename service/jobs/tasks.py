"""Scoring a task: its prompts answered greedily by the engine, many at once, and compared exactly. In the job's child.

The engine is the one that serves, so that a score is what clients of this variant will see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service.domain.errors import InternalError, PromptTooLong
from service.domain.generation import Failed, Finished, GenerationRequest, Message, SamplingParams, Token
from service.domain.tasks import TaskItem, is_right, may_become_right
from service.engine.engine import Engine, EngineOptions
from service.engine.prompt import PromptRenderer
from service.llama.context import Context
from service.llama.model import Model

_SLOTS = 16
_CELLS = 8192  # of KV cache, unless one prompt alone needs more
_BATCH_TOKENS = 512
# An answer may be put in more tokens than the tokenizer would make of it; past this it is not the expected one.
_TOKENS_FACTOR = 2
_TOKENS_MARGIN = 16

Progress = Callable[[int, int], None]
"""`(items done, items in all)`."""


def count_right(model: Model, items: Sequence[TaskItem], *, threads: int, progress: Progress) -> int:
    """How many items this model answers exactly. A prompt goes through the chat template when the model has one.

    Raises PromptTooLong for an item that does not fit the model's context, NoChatTemplate for messages without one,
    TemplateFailed, LoadFailed when the memory cannot be had.
    """
    renderer = PromptRenderer.of(model)
    has_template = model.chat_template() is not None
    requests = [_request(item, model, has_template) for item in items]
    prompts = [renderer.tokens(request) for request in requests]
    longest = _longest(model, prompts, requests)
    slots = max(1, min(_SLOTS, _CELLS // longest, len(items)))
    context = Context(
        model,
        cells=slots * longest,
        sequences=slots,
        batch_tokens=min(_BATCH_TOKENS, slots * longest),
        threads=threads,
        flash_attention=True,
    )
    options = EngineOptions(
        context_length=longest,
        slots=slots,
        batch_tokens=min(_BATCH_TOKENS, slots * longest),
        threads=threads,
        # Nobody reads along: whole prompts go into a batch, however long the others wait.
        max_gap_seconds=3600.0,
        # A beginning that another prompt has computed is rounded a little differently: near ties would fall by what
        # happens to be in the cache.
        keeps_prefixes=False,
        speculates=False,
    )
    engine = Engine(model, context, options)
    try:
        return _run(engine, items, prompts, requests, progress)
    finally:
        for number in range(len(items)):
            engine.cancel(number)
        context.close()


def _request(item: TaskItem, model: Model, has_template: bool) -> GenerationRequest:
    tokens = len(model.tokenize(item.expected, add_special=False, parse_special=False))
    messages = item.messages
    if item.prompt is not None and has_template:
        messages = (Message("user", item.prompt),)
    return GenerationRequest(
        prompt=None if messages else item.prompt,
        messages=messages,
        max_tokens=_TOKENS_FACTOR * tokens + _TOKENS_MARGIN,
        sampling=SamplingParams(temperature=0.0),
        speculate=False,
    )


def _longest(model: Model, prompts: Sequence[list[int]], requests: Sequence[GenerationRequest]) -> int:
    """Tokens of the longest prompt with its answer, within the model's context."""
    limit = model.context_length or _CELLS
    longest = 0
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True), start=1):
        if len(prompt) >= limit:
            raise PromptTooLong(
                f"Item {number} of the task has {len(prompt)} tokens and the model's context holds {limit}; make it "
                "shorter.",
                param="task",
            )
        assert request.max_tokens is not None
        longest = max(longest, len(prompt) + request.max_tokens)
    return min(longest, limit)


def _run(
    engine: Engine,
    items: Sequence[TaskItem],
    prompts: Sequence[list[int]],
    requests: Sequence[GenerationRequest],
    progress: Progress,
) -> int:
    for number, (prompt, request) in enumerate(zip(prompts, requests, strict=True)):
        engine.submit(number, prompt, request)
    answers = [""] * len(items)
    ended = [False] * len(items)
    right = 0
    while not engine.is_idle:
        for number, event in engine.step():
            expected = items[number].expected
            if ended[number]:
                continue
            if isinstance(event, Token):
                answers[number] += event.text
                if not may_become_right(answers[number], expected):
                    ended[number] = True
                    engine.cancel(number)
            elif isinstance(event, Finished):
                ended[number] = True
                right += is_right(answers[number], expected)
            elif isinstance(event, Failed):
                raise InternalError(event.message)
        progress(sum(ended), len(items))
    return right
