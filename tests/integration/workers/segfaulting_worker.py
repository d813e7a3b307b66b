"""A worker whose kernels die like the AMX ones do: SIGSEGV in the first decode, unless repacked weights are off.

Run as the worker child by test_pool.py: `python segfaulting_worker.py [rungs that die, comma list] --channel FD`.
"""

from __future__ import annotations

import os
import signal
import sys

from service.llama.context import Context
from service.llama.model import Model
from service.workers import worker

DYING = set(sys.argv.pop(1).split(","))


class FragileModel(Model):
    def __init__(self, *arguments: object, use_extra_buffers: bool, **more: object) -> None:
        super().__init__(*arguments, use_extra_buffers=use_extra_buffers, **more)  # type: ignore[arg-type]
        self.rung = "full" if use_extra_buffers else "no-extra-buffers"


class FragileContext(Context):
    def __init__(self, model: FragileModel, *, flash_attention: bool, **more: object) -> None:
        super().__init__(model, flash_attention=flash_attention, **more)  # type: ignore[arg-type]
        self.rung = model.rung if flash_attention else "no-flash-attention"

    def decode(self) -> int:
        if self.rung in DYING:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().decode()


worker.Model = FragileModel  # type: ignore[misc, assignment]
worker.Context = FragileContext  # type: ignore[misc, assignment]
sys.exit(worker.main())
