"""What a job's child tells the server of its steps."""

from __future__ import annotations

import os

from service.frames import FrameReader
from service.jobs.messages import Progress
from service.jobs.outbox import Outbox


def test_the_end_of_a_step_is_told_however_short_the_step_was_and_what_lies_between_is_thinned_out() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream:
        outbox = Outbox(writing)
        for fraction, detail in ((0.0, None), (0.4, "some"), (0.9, "more"), (1.0, "all of it")):
            outbox.progress(0, fraction, detail)
        outbox.progress(1, 0.0)
        os.close(writing)
        reader: FrameReader[Progress] = FrameReader(Progress)
        told = list(iter(lambda: reader.read_blocking(stream), None))
    assert told == [Progress(0, 0.0, None), Progress(0, 1.0, "all of it"), Progress(1, 0.0, None)]
