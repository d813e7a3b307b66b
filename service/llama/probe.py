"""Loading a model for work in the background, with the fast kernels where they work. Child processes only.

On some machines the processor reports AMX and dies of it. `python -m service.llama.probe PATH` tries a model in a
process that may die: it loads it and computes a prompt and a token. Only builds that use AMX are tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from service.children import bind_to_parent, child_argv, child_environment
from service.llama.backend import build
from service.llama.context import Context
from service.llama.model import Model

_SECONDS = 600.0
_PROMPT_TOKENS = 48  # more than llama.cpp's thresholds between its kernels for one token and for many


def load_on_processor(path: Path) -> Model:
    """The model at `path`, on the processor, with every kernel that works here. Raises LoadFailed."""
    return Model(path, gpu_layers=0, use_extra_buffers=extra_buffers_work(path))


def extra_buffers_work(path: Path) -> bool:
    """Whether this model can be computed with repacked weights; without trying where nothing speaks against it."""
    if "AMX_INT8 = 1" not in build().system_info:
        return True
    try:
        ended = subprocess.run(
            [*child_argv("service.llama.probe"), os.fspath(path)],
            env=child_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.returncode == 0


def main() -> int:
    """Load, compute, end."""
    bind_to_parent()
    model = Model(Path(sys.argv[1]), gpu_layers=0, use_extra_buffers=True)
    context = Context(model, cells=64, sequences=1, batch_tokens=64, threads=2, flash_attention=True)
    tokens = [token % model.vocabulary_size for token in range(_PROMPT_TOKENS)]
    context.batch.add(tokens, 0, 0, logits=1)
    status = context.decode()
    context.batch.clear()
    context.batch.add(tokens[:1], len(tokens), 0, logits=1)
    return status or context.decode()


if __name__ == "__main__":
    sys.exit(main())
