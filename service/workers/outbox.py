"""A worker's frames on their way to the server: sent at once where the socket takes them, else by a side thread.

Waking a thread for every step costs the computing threads more than the send itself, so the engine's thread sends. It
never waits: what the socket does not take, and all that follows, goes to the side thread in order.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from typing import NoReturn

from service.frames import encode
from service.workers.protocol import FromWorker


class Outbox:
    """The writing end of the channel. When the server is gone, so is this process."""

    def __init__(self, channel: socket.socket) -> None:
        """`channel` is a connected stream socket, also read from elsewhere."""
        self._channel = channel
        self._lock = threading.Lock()
        self._waiting = 0  # pieces that the side thread has not sent yet
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin; the side thread ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, message: FromWorker) -> None:
        """Send a message, behind those before it. Never waits for the server."""
        data = encode(message)
        with self._lock:
            if not self._waiting:
                data = data[self._sent(data) :]
            if data:
                self._waiting += 1
                self._pieces.put(data)

    def _sent(self, data: bytes) -> int:
        try:
            return self._channel.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            os._exit(0)

    def _run(self) -> NoReturn:
        while True:
            try:
                self._channel.sendall(self._pieces.get())
            except OSError:
                os._exit(0)
            with self._lock:
                self._waiting -= 1
