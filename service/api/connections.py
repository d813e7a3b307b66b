"""A client's connection: uvicorn's protocol on httptools, with the bounds it lacks. Server process; knows no route.

httptools takes heads of any size, and uvicorn waits for ever for a client that does not read. Here a head is bounded,
an end of input is a hang-up even while the client reads nothing, and a response can be cut with some last bytes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 16 * 1024

# How long a client that was cut off may still read what is on its way; then the socket is closed over its head.
LINGER_SECONDS = 5.0

# Bytes that wait here, and again as many in the kernel, for a client that does not read; then its stream stands still.
# The kernel alone would take megabytes, minutes of text that nobody may ever read.
_UNSENT_BYTES = 16 * 1024

_CUT = "quantry.cut"


def cutter(scope: Scope) -> Callable[[bytes], None] | None:
    """What ends the response to this request at once, with some last bytes of its body; None on other servers.

    It needs no room in the socket: use it where the client does not read.
    """
    cut: Callable[[bytes], None] | None = scope.get("extensions", {}).get(_CUT, {}).get("cut")
    return cut


class Connection(HttpToolsProtocol):
    """Give the class to uvicorn as its `http`."""

    _in_head = False
    _began = False  # the present head, in the present read
    _parsed_bytes = 0  # of the present head, or of its trailers
    _late_bytes = 0  # that came for the present head after the read it began in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Bound what piles up for a client that does not read."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=_UNSENT_BYTES)
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux and macOS
        raw = transport.get_extra_info("socket")
        if option is not None and raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_BYTES)

    def data_received(self, data: bytes) -> None:
        """Parse; a head that is still not whole after `MAX_HEAD_BYTES` and the read it began in is refused."""
        self._began = False
        super().data_received(data)
        if self._in_head and not self._began:
            self._late_bytes += len(data)
            if self._late_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def eof_received(self) -> None:
        """The client has hung up. asyncio would flush first, which never ends when the client reads nothing."""
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            self.flow.resume_writing()

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head = self._began = True
        self._parsed_bytes = self._late_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are counted and dropped, for the head has been judged by then."""
        self._count(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole; the application starts in the next turn of the loop."""
        self._in_head = False
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope["extensions"] = {_CUT: {"cut": partial(self._cut, self.cycle)}}

    def _count(self, size: int) -> None:
        self._parsed_bytes += size
        if self._parsed_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # httptools tells uvicorn, which answers 400 and closes

    def _cut(self, cycle: RequestResponseCycle, last_bytes: bytes) -> None:
        if not cycle.response_complete and not cycle.disconnected:
            cycle.response_complete = True
            cycle.message_event.set()
            if cycle.chunked_encoding:  # else the client counts bytes, and sees that some are missing
                chunk = b"%x\r\n%b\r\n" % (len(last_bytes), last_bytes) if last_bytes else b""
                self.transport.write(chunk + b"0\r\n\r\n")
        self.transport.close()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)
