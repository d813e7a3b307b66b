"""The way in for GGUF files: open, recognise, read the header within bounds, and say what the model is.

Runs in child processes: a file that someone else shortens while it is mapped ends the process with SIGBUS. Knows
nothing of the store, of jobs, or of what will be done with the model.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from service.domain.catalog import FileFacts, ModelShape, TensorInfo
from service.domain.errors import InvalidModel
from service.domain.quants import BY_FILE_TYPE, UNQUANTIZED_TYPES, Family, Quantization
from service.gguf.checks import check_model, per_layer
from service.gguf.header import MAGIC, MAX_HEADER_BYTES, TOKENS_KEY, Header, weights
from service.gguf.parsing import parse_header
from service.gguf.recurrence import cache_heads, state_values

_CONVERT = "take the model's safetensors files, or save it again with transformers, and import that folder"
# First bytes -> what the file is and what to do.
_OTHER_FORMATS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", f"a zip archive, as PyTorch checkpoints (.bin, .pt, .pth) are; {_CONVERT}"),
    (b"\x80\x02", f"a pickled PyTorch checkpoint; {_CONVERT}"),
    (b"\x80\x03", f"a pickled PyTorch checkpoint; {_CONVERT}"),
    (b"\x80\x04", f"a pickled PyTorch checkpoint; {_CONVERT}"),
    (b"\x80\x05", f"a pickled PyTorch checkpoint; {_CONVERT}"),
    (b"lmgg", "an old GGML file; import it by itself, or fetch the model's GGUF file"),
    (b"fmgg", "an old GGML (ggmf) file; import it by itself, or fetch the model's GGUF file"),
    (b"tjgg", "an old GGML (ggjt) file; import it by itself, or fetch the model's GGUF file"),
    (b"algg", "an old GGML adapter; fetch the adapter's GGUF file and add it to its base model"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes; {_CONVERT}"),
    (b"\x1f\x8b", "compressed with gzip; unpack it and import the .gguf inside"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it and import the .gguf inside"),
    (b"BZh", "compressed with bzip2; unpack it and import the .gguf inside"),
    (b"\xfd7zXZ", "compressed with xz; unpack it and import the .gguf inside"),
    (b"version https://git-lfs", "a Git LFS pointer, not the model; run `git lfs pull` where it comes from"),
    (b"<!DOCTYPE", "a web page, not the model; use the address of the file itself"),
    (b"<!doctype", "a web page, not the model; use the address of the file itself"),
    (b"<html", "a web page, not the model; use the address of the file itself"),
)
_MAX_SAFETENSORS_HEADER_BYTES = 100_000_000

# What ftypes become when a row does not fill their blocks (tensor_type_fallback in llama-quant.cpp).
_FALLBACK = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
# Type of most weights -> label, for files that do not say (or say what cannot be).
_BY_MAIN_TYPE = {
    **{name: name for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q2_K")},
    **{name: name for name in ("IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")},
    **{name: name for name in ("TQ1_0", "TQ2_0", "Q1_0", "Q2_0")},
    "Q5_K": "Q5_K_S",
    "Q4_K": "Q4_K_S",
    "Q3_K": "Q3_K_S",
    "IQ2_S": "IQ2_M",
    "MXFP4": "MXFP4_MOE",
}
# Main type -> (a type beside it, the mix that it gives away), first match counts.
_MIXES = {
    "Q5_K": (("Q6_K", "Q5_K_M"),),
    "Q4_K": (("Q6_K", "Q4_K_M"),),
    "Q3_K": (("Q4_K", "Q3_K_M"), ("Q5_K", "Q3_K_L")),
}
_MOST_WIDTH = 1 << 31  # of all experts of a token; a file may say anything
_SHARED_TENSORS = frozenset({"token_embd.weight", "output.weight", "per_layer_token_embd.weight"})
_MAX_SHOWN_CHARACTERS = 200

UNKNOWN_LABEL = "UNKNOWN"


def read_header(path: Path, check: Callable[[Header], object] = check_model) -> Header:
    """Read and validate the header of a GGUF file, and check that all of its tensor data is there.

    `check` looks at what the pairs and tensors mean: those of a model, unless told otherwise. Raises InvalidModel, and
    nothing else, for whatever the file may be.
    """
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "no such path"
        raise InvalidModel(f"The file cannot be opened: {reason}. Check that it is there and readable.") from None
    try:
        return _read(descriptor, check)
    except (OSError, ValueError) as error:
        # ValueError: a file that shrank between fstat and mmap.
        raise InvalidModel(f"The file cannot be read ({type(error).__name__}). Check the disk it lies on.") from None
    finally:
        os.close(descriptor)


def _read(descriptor: int, check: Callable[[Header], object]) -> Header:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel("That is no regular file; give the path of a .gguf file.")
    size = status.st_size
    start = os.pread(descriptor, 32, 0)
    if start[:4] != MAGIC:
        raise InvalidModel(_what_it_is(start, size))
    with mmap.mmap(descriptor, min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ) as data:
        header = parse_header(data, size)
    check(header)
    return header


def _what_it_is(start: bytes, size: int) -> str:
    if not start:
        return "The file is empty; download or upload it again."
    for prefix, description in _OTHER_FORMATS:
        if start.startswith(prefix):
            return f"The file is no GGUF model but {description}."
    if len(start) >= 9 and start[8:9] == b"{":
        (length,) = struct.unpack_from("<Q", start)
        if length <= min(_MAX_SAFETENSORS_HEADER_BYTES, size - 8):
            return "The file is no GGUF model but a safetensors file; give the checkpoint's whole folder."
    return "The file is no GGUF model: it does not start with the letters GGUF. Give a .gguf file."


# --- what the model is -------------------------------------------------------------------------------------------


def facts(header: Header) -> FileFacts:
    """What a validated header says of its model; the label is checked against the tensors themselves."""
    parameters = sum(weights(tensor.shape) for tensor in header.tensors)
    tensor_bytes = sum(tensor.size_bytes for tensor in header.tensors)
    types = Counter(tensor.type for tensor in header.tensors)
    template = header.text("tokenizer.chat_template")
    return FileFacts(
        quantization=label_of(header),
        parameters=parameters,
        bits_per_weight=tensor_bytes * 8 / parameters,
        tensor_bytes=tensor_bytes,
        shape=_shape(header),
        general_name=_shown(header.text("general.name")),
        license=_shown(header.text("general.license")),
        has_chat_template=bool(template and template.strip()),
        quantized_tensors=any(name not in UNQUANTIZED_TYPES for name in types),
        types=ranked(types),
    )


def ranked(types: Counter[str]) -> tuple[tuple[str, int], ...]:
    """Type counts, most frequent first, names in order among equals."""
    return tuple(sorted(types.items(), key=lambda item: (-item[1], item[0])))


def label_of(header: Header) -> str:
    """The label of `general.file_type` where the tensors bear it out, else the one that their types give."""
    by_type = weights_by_type(header.tensors)
    level = BY_FILE_TYPE.get(header.whole("general.file_type") or 0) if "general.file_type" in header.pairs else None
    if level is not None and _bears_out(level, by_type):
        return level.label
    main = by_type.most_common(1)[0][0]
    for beside, label in _MIXES.get(main, ()):
        if beside in by_type:
            return label
    return _BY_MAIN_TYPE.get(main, UNKNOWN_LABEL)


def _bears_out(level: Quantization, by_type: Counter[str]) -> bool:
    main = by_type.most_common(1)[0][0]
    if level.family is Family.FLOAT:
        return main == level.base_type
    return main not in UNQUANTIZED_TYPES and not by_type.keys().isdisjoint(
        {level.base_type, _FALLBACK.get(level.base_type, level.base_type)}
    )


def weights_by_type(tensors: tuple[TensorInfo, ...]) -> Counter[str]:
    """Weights by type over the matrices inside the layers: those that a level's name speaks of.

    Embedding and output follow other rules and can be most of a small model, so they count only where there is
    nothing else; so do vectors.
    """
    matrices = [tensor for tensor in tensors if dimensions(tensor.shape) > 1]
    inner = [tensor for tensor in matrices if tensor.name not in _SHARED_TENSORS]
    counts: Counter[str] = Counter()
    for tensor in inner or matrices or tensors:
        counts[tensor.type] += weights(tensor.shape)
    return counts


def dimensions(shape: tuple[int, ...]) -> int:
    """How many dimensions ggml counts (and writes): trailing ones are none."""
    count = len(shape)
    while count > 1 and shape[count - 1] == 1:
        count -= 1
    return count


def _shape(header: Header) -> ModelShape:
    arch = header.architecture
    layers = header.whole(f"{arch}.block_count") or 0
    embedding = header.whole(f"{arch}.embedding_length") or 0
    heads = per_layer(header, "attention.head_count")
    kv_heads = per_layer(header, "attention.head_count_kv") or heads
    widest = max(heads, default=0)
    head_length = embedding // widest if widest else 0
    feed_forward = per_layer(header, "feed_forward_length")
    used = header.whole(f"{arch}.expert_used_count") or 0
    expert_length = header.whole(f"{arch}.expert_feed_forward_length") or max(feed_forward, default=0)
    key_length = header.whole(f"{arch}.attention.key_length")
    value_length = header.whole(f"{arch}.attention.value_length")
    return ModelShape(
        architecture=arch,
        layers=layers,
        embedding=embedding,
        heads=widest,
        kv_heads=-(-sum(kv_heads) // layers) if layers else 0,
        key_length=head_length if key_length is None else key_length,
        value_length=head_length if value_length is None else value_length,
        feed_forward=max(feed_forward, default=0),
        vocabulary=_vocabulary(header),
        experts=header.whole(f"{arch}.expert_count") or 0,
        context_length=header.whole(f"{arch}.context_length") or 0,
        sliding_window=header.whole(f"{arch}.attention.sliding_window") or 0,
        cache_heads=cache_heads(header, kv_heads),
        expert_width=min(used * expert_length, _MOST_WIDTH),
        state_values=state_values(header, kv_heads, feed_forward),
        generates=header.metadata.get(f"{arch}.attention.causal") is not False,
    )


def _vocabulary(header: Header) -> int:
    tokens = header.array(TOKENS_KEY)
    if tokens is not None:
        return tokens.count
    stated = header.whole(f"{header.architecture}.vocab_size")
    if stated is not None:
        return stated
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    return embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else 0


def _shown(text: str | None) -> str | None:
    """A free text of the file, fit for an answer or a log line: printable, one line, bounded; None when empty."""
    if text is None:
        return None
    cleaned = "".join(letter if letter.isprintable() else " " for letter in text[: 4 * _MAX_SHOWN_CHARACTERS])
    return " ".join(cleaned.split())[:_MAX_SHOWN_CHARACTERS] or None
