"""An engine over a real model, driven to the end of its requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.domain.generation import (
    Failed,
    Finished,
    GenerationEvent,
    GenerationRequest,
    SamplingParams,
    Token,
    TokenLogprob,
)
from service.engine.engine import Engine, EngineOptions
from service.engine.grammar import GrammarCompiler
from service.llama.adapter import Adapter
from service.llama.context import Context
from service.llama.model import Model

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Answer:
    """What came back for one request."""

    texts: dict[int, str] = field(default_factory=dict)
    ends: dict[int, Finished] = field(default_factory=dict)
    failed: Failed | None = None
    events: list[GenerationEvent] = field(default_factory=list)

    @property
    def text(self) -> str:
        assert self.failed is None, self.failed
        return self.texts.get(0, "")

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for event in self.events if isinstance(event, Token) for entry in event.logprobs]

    @property
    def cached(self) -> int:
        return self.ends[0].usage.cached_tokens

    def take(self, event: GenerationEvent) -> None:
        self.events.append(event)
        if isinstance(event, Token):
            assert event.choice not in self.ends
            self.texts[event.choice] = self.texts.get(event.choice, "") + event.text
        elif isinstance(event, Finished):
            assert event.choice not in self.ends
            self.ends[event.choice] = event
        else:
            assert self.failed is None
            self.failed = event


class Driver:
    """Submits requests to an engine and collects their answers."""

    def __init__(self, engine: Engine, model: Model) -> None:
        self.engine = engine
        self.model = model
        self.grammars = GrammarCompiler(model)
        self.answers: dict[int, Answer] = {}

    def submit(self, prompt: str | list[int], request: GenerationRequest) -> int:
        tokens = self.tokens(prompt) if isinstance(prompt, str) else prompt
        constraint = None if request.grammar is None else self.grammars.compile(request.grammar)
        request_id = len(self.answers) + 1
        self.answers[request_id] = Answer()
        self.engine.submit(request_id, tokens, request, constraint)
        return request_id

    def tokens(self, prompt: str) -> list[int]:
        return self.model.tokenize(prompt, add_special=True, parse_special=False)

    def step(self) -> None:
        for request_id, event in self.engine.step():
            self.answers[request_id].take(event)

    def finish(self) -> None:
        while not self.engine.is_idle:
            self.step()

    def ask(self, prompt: str | list[int], request: GenerationRequest) -> Answer:
        request_id = self.submit(prompt, request)
        self.finish()
        return self.answers[request_id]

    def ask_all(self, prompts: Iterable[str | list[int]], request: GenerationRequest) -> list[Answer]:
        ids = [self.submit(prompt, request) for prompt in prompts]
        self.finish()
        return [self.answers[request_id] for request_id in ids]


@contextmanager
def running(
    path: Path,
    *,
    slots: int = 4,
    cells: int = 1024,
    batch_tokens: int = 256,
    keeps_prefixes: bool = True,
    speculates: bool = True,
    adapters: dict[str, Path] | None = None,
) -> Iterator[Driver]:
    model = Model(path, gpu_layers=0, use_extra_buffers=True)
    context = Context(model, cells=cells, sequences=slots, batch_tokens=batch_tokens, threads=2, flash_attention=True)
    options = EngineOptions(
        context_length=cells,
        slots=slots,
        batch_tokens=batch_tokens,
        threads=2,
        keeps_prefixes=keeps_prefixes,
        speculates=speculates,
    )
    engine = Engine(model, context, options, {name: Adapter(model, file) for name, file in (adapters or {}).items()})
    try:
        yield Driver(engine, model)
    finally:
        engine.close()


def greedy(max_tokens: int, **more: object) -> GenerationRequest:
    return GenerationRequest(prompt="", max_tokens=max_tokens, sampling=GREEDY, ignore_eos=True, **more)  # type: ignore[arg-type]
