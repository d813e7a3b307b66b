"""The child's end of the pipe to the server."""

from __future__ import annotations

import os
import time

from service.frames import encode
from service.jobs.messages import Message, Progress

_PROGRESS_EVERY_SECONDS = 0.1


class Outbox:
    """Where messages to the server go. Progress is thinned out; the ends of steps are not."""

    def __init__(self, descriptor: int) -> None:
        """Writes to `descriptor`."""
        self._descriptor = descriptor
        self._step = -1
        self._sent_at = 0.0

    def send(self, message: Message) -> None:
        """Write one frame; blocks while the server is busy committing."""
        data = memoryview(encode(message))
        while data:
            data = data[os.write(self._descriptor, data) :]

    def progress(self, step: int, fraction: float, detail: str | None = None) -> None:
        """Say how far step number `step` is, unless that was said a moment ago; its end is always said."""
        moment = time.monotonic()
        if step != self._step or fraction >= 1.0 or moment - self._sent_at >= _PROGRESS_EVERY_SECONDS:
            self._step, self._sent_at = step, moment
            self.send(Progress(step, fraction, detail))
