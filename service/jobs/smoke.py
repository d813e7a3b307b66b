"""The last check of an import: llama.cpp loads the model and computes one token. In the job's child.

What a header check cannot see shows here: an architecture this build does not know, a missing tensor, a vocabulary
that does not match, weights that are no numbers, a crash. It ends this process and no other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil

from service.domain.errors import InvalidModel, LoadFailed
from service.jobs.templates import template_verdict
from service.llama.context import Context
from service.llama.model import Model

_CELLS = 64
_TOKENS = 8
# Computing a token reads every weight; a file that does not fit in free memory would be read from disk for minutes.
_MEMORY_SHARE = 0.7


def smoke_check(path: Path, size_bytes: int) -> str | None:
    """Load the model at `path`; compute one token when memory allows. Raises InvalidModel with llama.cpp's reason.

    What is to be said of its chat template: see `FileFacts.template_verdict`. The model is loaded without the
    weight-repacking buffers: some machines crash in their kernels, and that is not the file's fault.
    """
    try:
        model = Model(path, gpu_layers=0, use_extra_buffers=False)
    except LoadFailed as error:
        raise InvalidModel(f"{error.message.replace(str(path), 'the file')} The file is damaged or too new.") from error
    try:
        tokens = model.tokenize("Hello world", add_special=True, parse_special=False)[:_TOKENS] or [0]
        fits = size_bytes < psutil.virtual_memory().available * _MEMORY_SHARE
        if fits and model.has_decoder and not model.has_encoder:
            _compute(model, tokens)
        template = model.chat_template()
        if template is None or not template.strip():
            return None
        bos, eos = (model.piece(token, special=True) for token in (model.bos_token, model.eos_token))
        return template_verdict(template, bos.decode("utf-8", "replace"), eos.decode("utf-8", "replace"))
    finally:
        model.close()


def _compute(model: Model, tokens: list[int]) -> None:
    try:
        context = Context(model, cells=_CELLS, sequences=1, batch_tokens=_CELLS, threads=1, flash_attention=False)
    except LoadFailed as error:
        raise InvalidModel(f"{error.message} The file is damaged, or too little memory is free.") from error
    try:
        if context.memory is None:  # an embedding model: it has no next token
            return
        context.batch.clear()
        last = context.batch.add(tokens, 0, 0, logits=1) + len(tokens) - 1
        status = context.decode()
        if status != 0:
            raise InvalidModel(f"llama.cpp loads the model and cannot compute with it (status {status}).")
        if np.isnan(context.logits(last)).any():
            raise InvalidModel("The model computes values that are no numbers: its weights are damaged. Get it again.")
    finally:
        context.close()
