"""What the server and a job's child say to each other over the child's pipes, as frames (service/frames.py).

Runs on both sides. The server sends one task and then keeps the pipe open: its end tells the child that the server is
gone. The child answers with any number of `Progress`
and `Made`, and ends with `Done` or `Failed`.
"""

from __future__ import annotations

import msgspec

from service.domain.jobs import MadeFile


class ImportTask(msgspec.Struct, frozen=True, tag="import"):
    """Validate and plan one file. With `digest` the file is a blob, used in place; without, it is copied to `target`.

    `name` is the reference asked for; `niceness` is the scheduling priority of the child, 19 the lowest.
    """

    source: str
    target: str
    name: str
    digest: str | None
    niceness: int


class LevelTask(msgspec.Struct, frozen=True):
    """One level to make; `expected_bytes` is the exact size from the plan."""

    quantization: str
    target: str
    expected_bytes: int


class QuantizeTask(msgspec.Struct, frozen=True, tag="quantize"):
    """Make `levels` of the file `source`, in this order. `threads` 0 means all cores; `niceness` as above."""

    source: str
    levels: tuple[LevelTask, ...]
    allow_requantize: bool
    threads: int
    niceness: int


Task = ImportTask | QuantizeTask


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far step number `step` is, 0 to 1. `detail` is for people, e.g. "tensor 12 of 56"."""

    step: int
    fraction: float
    detail: str | None = None


class Made(msgspec.Struct, frozen=True, tag="made"):
    """Step number `step` is done and has left this file; `llama_build` is the library that made or checked it."""

    step: int
    file: MadeFile
    llama_build: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The job cannot go on; `code` is one of the error tree's."""

    code: str
    message: str
    param: str | None = None


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Everything asked for is made."""


Message = Progress | Made | Failed | Done
