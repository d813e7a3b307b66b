"""Taking in a LoRA adapter, in the job's child: bring its GGUF file, check it against its base, try it beside it.

What passes has been computed with once, beside the very model that it was named for: an adapter that would end a
worker ends this process instead.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from msgspec.structs import replace

from service.domain.catalog import AdapterFacts
from service.domain.errors import InvalidModel, InvalidParameter, LoadFailed
from service.gguf.adapters import check_values, read_adapter
from service.gguf.checkpoint_files import Files
from service.gguf.files import read_header
from service.gguf.header import MAGIC, Header
from service.gguf.peft import CONFIG, convert_adapter
from service.jobs.adapter_fetching import fetched_adapter
from service.jobs.limits import (
    lift_memory_limit,
    limit_file_size,
    limit_memory,
    stay_in_the_background,
)
from service.jobs.messages import AdapterMade, AdapterTask
from service.jobs.outbox import Outbox
from service.jobs.server_paths import ADAPTER_PATHS, unreadable
from service.llama.adapter import Adapter, use_adapters
from service.llama.context import Context
from service.llama.model import Model

_LOWEST = 19  # niceness
_CELLS = 64
_TOKENS = 8
_CHUNK_BYTES = 1024 * 1024
_MEMORY_SHARE = 0.7  # as for an import: computing reads every weight of the base


def take_in(task: AdapterTask, outbox: Outbox) -> None:
    """Do the task and send one `AdapterMade`. Raises InvalidModel, InvalidParameter, OSError."""
    base = read_header(Path(task.base))
    if task.access is None:
        _check_and_try(task, base, 0, outbox)
        return
    with fetched_adapter(task, 0, outbox) as files:
        if task.niceness > 0:  # what comes now computes, and is to leave the cores to inference
            stay_in_the_background(_LOWEST)
        alone = len(files) == 1
        there = replace(task, source=files[0].path if alone else "", files=() if alone else files)
        _check_and_try(there, base, 1, outbox)


def _check_and_try(task: AdapterTask, base: Header, step: int, outbox: Outbox) -> None:
    if task.digest is not None:
        path, digest = Path(task.source), task.digest
        limit_memory(path.stat().st_size)
        _refuse_weights_alone(path)
    else:
        path = Path(task.target)
        digest = _bring(task, base, path, step, outbox)
        step += 1
    facts = examine_adapter(path, [Path(task.base)], step, outbox)
    outbox.send(AdapterMade(step + 1, str(path), digest, path.stat().st_size, facts))


def examine_adapter(path: Path, bases: Sequence[Path], step: int, outbox: Outbox) -> AdapterFacts:
    """What is asked of an adapter's GGUF file before it may be used: that it belongs to one of these models, its values
    are numbers (step `step`), and that one can compute with it (the next step).

    Memory has been limited by the caller and is not when this returns. Raises InvalidModel.
    """
    outbox.progress(step, 0.0)
    base, header, facts = _base_among(bases, path)
    check_values(path, header, lambda fraction: outbox.progress(step, fraction))
    outbox.progress(step + 1, 0.0)
    lift_memory_limit()
    _try_out(base, path)
    return facts


def _base_among(bases: Sequence[Path], path: Path) -> tuple[Path, Header, AdapterFacts]:
    """The first of the models that the adapter fits. Raises InvalidModel with why it does not fit the last."""
    problem = InvalidModel("There is no model to check the adapter against; bring it in as one of a model.")
    for base in bases:
        try:
            return base, *read_adapter(path, read_header(base))
        except InvalidModel as error:
            problem = error
    raise problem


def _bring(task: AdapterTask, base: Header, target: Path, step: int, outbox: Outbox) -> str:
    """Leave the adapter's GGUF file at `target`: converted from PEFT's files, or copied; its digest."""
    if task.files:
        files = Files({file.name: Path(file.path) for file in task.files})
    elif Path(task.source).is_dir():
        files = Files.of_folder(Path(task.source), tuple(Path(folder).resolve() for folder in task.within))
    else:
        return _copy(Path(task.source), target, step, outbox)
    size_bytes = files.size_bytes()
    limit_memory(2 * size_bytes)
    limit_file_size(4 * size_bytes)  # the factors may be 8-bit floats, and are written in F32
    return convert_adapter(files, base, target, lambda fraction, words: outbox.progress(step, fraction, words)).digest


def _copy(source: Path, target: Path, step: int, outbox: Outbox) -> str:
    """Copy a GGUF file while hashing it. Raises InvalidParameter for what is no readable file, or changes meanwhile."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise unreadable(source, ADAPTER_PATHS) from error
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise unreadable(source, ADAPTER_PATHS)
        limit_memory(before.st_size)
        limit_file_size(before.st_size)
        _refuse_weights_alone(source)
        hasher = hashlib.sha256()
        copied = 0
        with target.open("xb") as output:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
                output.write(chunk)
                copied += len(chunk)
                outbox.progress(step, min(1.0, copied / max(1, before.st_size)))
            output.flush()
            os.fsync(output.fileno())
        after = os.fstat(descriptor)
        if copied != before.st_size or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InvalidParameter(
                f"{source.name[:80]!r} changed while it was copied; add it when it is complete.", param="path"
            )
    return f"sha256:{hasher.hexdigest()}"


def _refuse_weights_alone(path: Path) -> None:
    """A safetensors file does not say how much it counts; other files are told apart later."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[:4] != MAGIC and start[8:9] == b"{":
        raise InvalidModel(
            f"That is a safetensors file alone; give its folder, or both files, for {CONFIG} says how much it counts."
        )


def _try_out(base: Path, path: Path) -> None:
    """Compute with the adapter beside its base, when memory allows. Raises InvalidModel with llama.cpp's reason."""
    model = Model(base, gpu_layers=0, use_extra_buffers=False)
    try:
        if not model.has_decoder or model.has_encoder:
            raise InvalidModel("This model gives vectors, not texts, and adapters are for texts here.", param="model")
        try:
            adapter = Adapter(model, path)
        except LoadFailed as error:
            raise InvalidModel(error.message) from error
        if base.stat().st_size < psutil.virtual_memory().available * _MEMORY_SHARE:
            _compute(model, adapter)
    finally:
        model.close()


def _compute(model: Model, adapter: Adapter) -> None:
    tokens = model.tokenize("Hello world", add_special=True, parse_special=False)[:_TOKENS] or [0]
    try:
        context = Context(model, cells=_CELLS, sequences=1, batch_tokens=_CELLS, threads=1, flash_attention=False)
    except LoadFailed as error:
        raise InvalidModel(f"{error.message} Too little memory may be free.") from error
    try:
        if context.memory is None:
            raise InvalidModel("This model gives vectors, not texts, and adapters are for texts here.", param="model")
        use_adapters(context, [(adapter, 1.0)])
        context.batch.clear()
        last = context.batch.add(tokens, 0, 0, logits=1) + len(tokens) - 1
        status = context.decode()
        if status != 0:
            raise InvalidModel(f"llama.cpp loads the adapter and cannot compute with it (status {status}).")
        if np.isnan(context.logits(last)).any():  # a model may rule tokens out with -inf
            raise InvalidModel(
                "With the adapter the model computes values that are no numbers: its training has failed, or it "
                "belongs to another model. Get another one."
            )
    finally:
        context.close()
        adapter.close()
