"""Messages between the server and a worker child, versioned; plain data in msgpack frames.

    server -> worker   Load, then Submit, Cancel, Ping, Close in any order
    worker -> server   Ready or LoadFailed, then Events and Pong

A step of the engine is one Events frame for all its requests.
"""

from __future__ import annotations

import msgspec

from service.domain.generation import Failed, Finished, GenerationRequest

VERSION = 1


class Load(msgspec.Struct, tag="load", frozen=True):
    """The first frame: what to load and how. `gpu_layers` -1 offloads all layers."""

    path: str
    context_length: int
    parallel: int
    batch_tokens: int
    threads: int
    gpu_layers: int
    extra_buffers: bool
    flash_attention: bool
    version: int = VERSION


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """A request; `id` is unique within the worker's life."""

    id: int
    request: GenerationRequest


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Nobody waits for this request any more."""

    id: int


class Ping(msgspec.Struct, tag="ping", frozen=True):
    """Answered by the engine loop itself, so that a stuck loop is found."""

    id: int


class Close(msgspec.Struct, tag="close", frozen=True):
    """Free everything and exit."""


ToWorker = Load | Submit | Cancel | Ping | Close


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
    """What one step brought, by request id; within a request, text comes before its end."""

    texts: list[tuple[int, str]]
    finished: list[tuple[int, Finished]]
    failed: list[tuple[int, Failed]]


class Pong(msgspec.Struct, tag="pong", frozen=True):
    """The engine loop is alive."""

    id: int
    steps: int
    free_cells: int


FromWorker = Ready | LoadFailed | Events | Pong
