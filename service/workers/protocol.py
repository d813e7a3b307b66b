"""Messages between the server and a worker child, versioned; plain data in msgpack frames.

    server -> worker   Load, then Submit, Embed, Ask, LoadAdapter, DropAdapter, Cancel, Pause, Resume, Ping, Close
                       in any order
    worker -> server   Ready or LoadFailed, then Events, Embedded, EmbedFailed, Answered, AskFailed, AdapterLoaded,
                       AdapterFailed and Pong

A step of the engine is one Events frame for all its requests.
"""

from __future__ import annotations

import msgspec

from service.domain.generation import (
    EmbeddingRequest,
    Embeddings,
    Failed,
    Finished,
    GenerationRequest,
    TokenLogprob,
    ToolCallDelta,
)
from service.workers.questions import Answer, Question

VERSION = 5


class Load(msgspec.Struct, tag="load", frozen=True):
    """The first frame: what to load and how. `gpu_layers` -1 offloads all layers.

    `max_token_gap_seconds` bounds how long prompts may hold up running streams; `prefix_cache` keeps what was computed
    for requests that begin alike.
    """

    path: str
    context_length: int
    parallel: int
    batch_tokens: int
    threads: int
    gpu_layers: int
    extra_buffers: bool
    flash_attention: bool
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    max_token_gap_seconds: float = 0.25
    prefix_cache: bool = True
    speculation: bool = True
    version: int = VERSION


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """A request; `id` is unique within the worker's life. `draft_path` is the file behind `request.draft`."""

    id: int
    request: GenerationRequest
    draft_path: str | None = None


class Embed(msgspec.Struct, tag="embed", frozen=True):
    """Texts to turn into vectors; ids are shared with Submit."""

    id: int
    request: EmbeddingRequest


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A question about words and tokens; ids are shared with Submit. Never cancelled: answers are quick."""

    id: int
    question: Question


class LoadAdapter(msgspec.Struct, tag="load_adapter", frozen=True):
    """A LoRA adapter to load beside the weights, under the name that requests use; ids are shared with Submit.

    It is there for every Submit sent after the answer. Carried out between two steps of the engine.
    """

    id: int
    name: str
    path: str


class DropAdapter(msgspec.Struct, tag="drop_adapter", frozen=True):
    """Free an adapter that no request uses; not answered."""

    name: str


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Nobody waits for this request any more."""

    id: int


class Pause(msgspec.Struct, tag="pause", frozen=True):
    """The client does not read: compute nothing more for this request until Resume or Cancel."""

    id: int


class Resume(msgspec.Struct, tag="resume", frozen=True):
    """The client reads again."""

    id: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answered by the engine loop itself, so that a stuck loop is found."""

    id: int


class Close(msgspec.Struct, tag="close", frozen=True):
    """Free everything and exit."""


ToWorker = Load | Submit | Embed | Ask | LoadAdapter | DropAdapter | Cancel | Pause | Resume | Ping | Close


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The model is loaded and the canary has sung: a prompt was computed and tokens were drawn.

    `slowest_step_seconds` is how long a full batch is expected to take, from the canary's pace.
    """

    load_seconds: float
    context_length: int
    cells: int
    slowest_step_seconds: float
    version: int = VERSION


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True):
    """It could not be loaded, and llama.cpp said why."""

    code: str
    message: str


class Events(msgspec.Struct, tag="events", frozen=True):
    """What one step brought, by request id and choice; within a choice, thinking comes before text, then calls, then
    its end.

    `logprobs` lists the tokens drawn, for requests that asked; they belong before the texts of the same frame.
    `started` has the length of a request's prompt, in tokens, in the first frame with anything of it.
    """

    texts: list[tuple[int, int, str]] = []
    finished: list[tuple[int, Finished]] = []
    failed: list[tuple[int, Failed]] = []
    logprobs: list[tuple[int, int, tuple[TokenLogprob, ...]]] = []
    thoughts: list[tuple[int, int, str]] = []
    calls: list[tuple[int, ToolCallDelta]] = []
    started: list[tuple[int, int]] = []


class Embedded(msgspec.Struct, tag="embedded", frozen=True):
    """The vectors of an Embed."""

    id: int
    embeddings: Embeddings


class EmbedFailed(msgspec.Struct, tag="embed_failed", frozen=True):
    """An Embed that could not be done."""

    id: int
    failed: Failed


class Answered(msgspec.Struct, tag="answered", frozen=True):
    """The answer to an Ask."""

    id: int
    answer: Answer


class AskFailed(msgspec.Struct, tag="ask_failed", frozen=True):
    """An Ask that has no answer."""

    id: int
    failed: Failed


class AdapterLoaded(msgspec.Struct, tag="adapter_loaded", frozen=True):
    """The adapter of a LoadAdapter can be named."""

    id: int


class AdapterFailed(msgspec.Struct, tag="adapter_failed", frozen=True):
    """An adapter that cannot be used here."""

    id: int
    failed: Failed


class Pong(msgspec.Struct, tag="pong", frozen=True):
    """The engine loop is alive. Cells that no request holds, and those that the prefix cache keeps; threads now."""

    id: int
    steps: int
    free_cells: int
    cached_cells: int = 0
    threads: int = 0


FromWorker = (
    Ready | LoadFailed | Events | Embedded | EmbedFailed | Answered | AskFailed | AdapterLoaded | AdapterFailed | Pong
)
