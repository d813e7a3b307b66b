"""One streamed completion over a socket of its own, for measuring: while tokens arrive, bytes are only kept.

The machine under test also runs this client, so nothing is decoded before a run is over: a read costs one clock call
and one append. Speaks as much HTTP/1.1 as the servers measured here answer with.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

_DATA = b"data: "
_DONE = b"data: [DONE]"


@dataclass(frozen=True)
class Target:
    """A server that speaks OpenAI's dialect; `extra` is added to every body."""

    host: str
    port: int
    model: str
    chat: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The route for text."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"


@dataclass(frozen=True)
class Ask:
    """One request. `cancel_after` hangs up after about that many events."""

    user: str
    max_tokens: int
    system: str = ""
    ignore_eos: bool = True
    fields: dict[str, Any] = field(default_factory=dict)
    cancel_after: int | None = None


@dataclass(frozen=True)
class Answer:
    """What came back; times in seconds of `time.perf_counter`.

    `times` has an entry for each event that carried text. `completion_tokens` is what the server's usage says, or the
    number of those events where it says nothing (cancelled, or a server without usage in streams).
    """

    started_at: float
    ended_at: float
    times: tuple[float, ...]
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cancelled: bool = False
    error: str | None = None

    @property
    def first_token_seconds(self) -> float:
        """From the start of the request, connection included, to the first text."""
        return self.times[0] - self.started_at

    @property
    def gaps(self) -> list[float]:
        """Seconds between consecutive events with text."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times)]


def body_of(target: Target, ask: Ask) -> dict[str, Any]:
    """The JSON body, greedy and streamed."""
    body: dict[str, Any] = {
        "model": target.model,
        "max_tokens": ask.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if target.chat:
        messages = [{"role": "system", "content": ask.system}] if ask.system else []
        body["messages"] = [*messages, {"role": "user", "content": ask.user}]
    else:
        body["prompt"] = f"{ask.system}\n\n{ask.user}" if ask.system else ask.user
    if ask.ignore_eos:
        body["ignore_eos"] = True
    return body | target.extra | ask.fields


class Stream(asyncio.Protocol):
    """A request on its way; `wait` gives the answer."""

    def __init__(self, target: Target, ask: Ask) -> None:
        body = json.dumps(body_of(target, ask)).encode()
        head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._target = target
        self._payload = head.encode() + body
        self._cancel_after = ask.cancel_after
        self._reads: list[tuple[float, bytes]] = []
        self._transport: asyncio.Transport | None = None
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started_at = 0.0
        self._cancelled = False
        self.events = 0
        """Events so far, by a count of their prefix; good enough to act on, not to report."""

    async def start(self) -> Stream:
        """Connect and send."""
        self._started_at = time.perf_counter()
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._target.host, self._target.port)
        return self

    async def wait(self, timeout_seconds: float) -> Answer:
        """The answer once it has ended; a timeout is an answer with an error."""
        late = False
        try:
            await asyncio.wait_for(asyncio.shield(self._over), timeout_seconds)
        except TimeoutError:
            late = True
        finally:
            self._close()
        answer = _parse(self._started_at, self._reads, cancelled=self._cancelled)
        return _failed(answer, f"no end within {timeout_seconds:.0f} s") if late else answer

    def hang_up(self) -> None:
        """Leave, as a client does that has seen enough."""
        self._cancelled = True
        self._close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        """asyncio's: the hot path."""
        self._reads.append((time.perf_counter(), data))
        self.events += data.count(_DATA)
        if _DONE in data:
            self._close()
        elif self._cancel_after is not None and self.events >= self._cancel_after:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        if not self._over.done():
            self._over.set_result(None)

    def _close(self) -> None:
        if self._transport is not None:
            if self._cancelled:
                self._transport.abort()
            else:
                self._transport.close()
        if not self._over.done():
            self._over.set_result(None)


async def ask_once(target: Target, ask: Ask, timeout_seconds: float = 600.0) -> Answer:
    """Send one request and wait for its end. A connection that fails is an answer with an error."""
    now = time.perf_counter()
    try:
        stream = await Stream(target, ask).start()
    except OSError as error:
        return Answer(now, time.perf_counter(), (), "", 0, 0, error=str(error))
    return await stream.wait(timeout_seconds)


def _failed(answer: Answer, error: str) -> Answer:
    return Answer(answer.started_at, answer.ended_at, answer.times, answer.text, answer.prompt_tokens, 0, error=error)


def _parse(started_at: float, reads: list[tuple[float, bytes]], *, cancelled: bool) -> Answer:
    raw = b"".join(data for _, data in reads)
    ends: list[int] = []  # offset in `raw` after each read
    for _, data in reads:
        ends.append((ends[-1] if ends else 0) + len(data))
    ended_at = reads[-1][0] if reads else time.perf_counter()
    head, _, rest = raw.partition(b"\r\n\r\n")
    if not rest and not cancelled:
        return Answer(started_at, ended_at, (), "", 0, 0, error="the connection closed without an answer")
    chunked = b"transfer-encoding: chunked" in head.lower()
    body, marks = _dechunk(raw, len(head) + 4) if chunked else (rest, [(len(rest), len(raw))])
    if b" 200 " not in head[:16]:
        refusal = f"{head[:40].splitlines()[0].decode(errors='replace')}: {_reason(body)}" if head else ""
        return Answer(started_at, ended_at, (), "", 0, 0, cancelled=cancelled, error=None if cancelled else refusal)

    def time_of(offset: int) -> float:
        """When the byte before `offset` of the body arrived."""
        if not chunked:
            return _at(reads, ends, len(head) + 4 + offset)
        index = bisect.bisect_left(marks, (offset, 0))
        return _at(reads, ends, marks[min(index, len(marks) - 1)][1])

    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    error: str | None = None
    done = False
    offset = 0
    for line in body.splitlines(keepends=True):
        offset += len(line)
        if not line.startswith(_DATA):
            continue
        data = line[len(_DATA) :].strip()
        if data == b"[DONE]":
            done = True
            continue
        try:
            event = json.loads(data)
        except ValueError:
            continue  # cut off by hanging up
        if "error" in event:
            error = _reason(data)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            text = choice.get("text") or (choice.get("delta") or {}).get("content")
            if text:
                times.append(time_of(offset))
                texts.append(text)
    if error is None and not cancelled:
        error = None if done else "the stream broke off"
        if done and not times:
            error = "an answer without text"
    return Answer(
        started_at,
        ended_at,
        tuple(times),
        "".join(texts),
        int(usage.get("prompt_tokens", 0)),
        int(usage.get("completion_tokens") or len(times)),
        int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        cancelled,
        error,
    )


def _at(reads: list[tuple[float, bytes]], ends: list[int], raw_offset: int) -> float:
    return reads[min(bisect.bisect_left(ends, raw_offset), len(reads) - 1)][0]


def _dechunk(raw: bytes, start: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body of a chunked answer, and after each chunk (bytes of body, bytes of `raw`). Ends early when cut off."""
    pieces: list[bytes] = []
    marks: list[tuple[int, int]] = []
    length = 0
    while True:
        line_end = raw.find(b"\r\n", start)
        if line_end < 0:
            break
        try:
            size = int(raw[start:line_end].split(b";")[0], 16)
        except ValueError:
            break
        if size == 0:
            break
        piece = raw[line_end + 2 : line_end + 2 + size]
        pieces.append(piece)
        length += len(piece)
        start = line_end + 2 + size + 2
        marks.append((length, min(start - 2, len(raw))))
    return b"".join(pieces), marks or [(0, len(raw))]


def _reason(body: bytes) -> str:
    try:
        error = json.loads(body)
        error = error.get("error", error)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return body[:300].decode(errors="replace")
