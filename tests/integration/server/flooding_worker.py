"""A worker without a model that sends text as fast as it is read, and obeys Pause, Resume and Cancel.

Run as the worker child by test_streams.py: `python flooding_worker.py --channel FD`.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time

from service.frames import FrameReader, encode
from service.workers.protocol import Cancel, Close, Events, Pause, Ping, Pong, Ready, Resume, Submit, ToWorker

TEXT = "x" * 100
STEP_SECONDS = 0.001


def main(channel: socket.socket) -> None:
    frames: FrameReader[ToWorker] = FrameReader(ToWorker)
    incoming = channel.makefile("rb")
    commands: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()

    def read() -> None:
        while (message := frames.read_blocking(incoming)) is not None:
            commands.put(message)
        commands.put(None)

    frames.read_blocking(incoming)  # Load
    channel.sendall(encode(Ready(load_seconds=0.0, context_length=512, cells=512, slowest_step_seconds=0.0)))
    threading.Thread(target=read, daemon=True).start()
    running: dict[int, bool] = {}  # request id -> paused
    while True:
        while not commands.empty():
            match commands.get():
                case Submit(id=number):
                    running[number] = False
                case Pause(id=number):
                    running[number] = True
                case Resume(id=number):
                    running[number] = False
                case Cancel(id=number):
                    del running[number]
                case Ping(id=number):
                    channel.sendall(encode(Pong(id=number, steps=0, free_cells=512 - len(running))))
                case Close() | None:
                    return
        texts = [(number, 0, TEXT) for number, paused in running.items() if not paused]
        if texts:
            channel.sendall(encode(Events(texts=texts)))
        time.sleep(STEP_SECONDS)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[2])))
