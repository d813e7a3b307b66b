"""Headers of safetensors files: what is sound is read exactly, whatever else there is raises InvalidModel alone."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.checkpoints import open_tensors
from service.gguf.safetensors import ITEM_BYTES, parse_header

SOUND: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
    "empty": {"dtype": "I64", "shape": [0, 7], "data_offsets": [26, 26]},
    "c.bias": {"dtype": "U8", "shape": [3], "data_offsets": [26, 29]},
}
DATA_BYTES = 29


def parsed(header: object, data_bytes: int = DATA_BYTES) -> object:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(text, 8 + len(text) + data_bytes)


def with_entry(**changes: Any) -> dict[str, Any]:
    return {**SOUND, "a.weight": {**SOUND["a.weight"], **changes}}


def test_a_sound_header_gives_each_tensor_where_it_lies() -> None:
    start = 8 + len(json.dumps(SOUND).encode())
    found = {entry.name: (entry.dtype, entry.shape, entry.offset - start, entry.size_bytes) for entry in parsed(SOUND)}
    assert found == {
        "a.weight": ("F32", (2, 3), 0, 24),
        "b": ("BF16", (), 24, 2),
        "empty": ("I64", (0, 7), 26, 0),
        "c.bias": ("U8", (3,), 26, 3),
    }


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b"{" * 100_000,
        b'{"a": ' + b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [' + b"9" * 10_000 + b'], "data_offsets": [0, 4]}}',
        with_entry(dtype="F4"),
        with_entry(dtype="f32"),
        with_entry(shape=[2, 4]),
        with_entry(shape=[-2, -3]),
        with_entry(shape=[2**62, 2**62, 0]),
        with_entry(shape=[2**32, 2**32]),  # 0 where integers wrap
        with_entry(shape=[2**62, 4, 3]),
        with_entry(shape=[1] * 9),
        with_entry(shape=[2.5, 3]),
        with_entry(data_offsets=[1, 25]),
        with_entry(data_offsets=[24, 0]),
        with_entry(data_offsets=[-24, 0]),
        with_entry(data_offsets=[0, 2**70]),
        {**SOUND, "d": {"dtype": "U8", "shape": [3], "data_offsets": [26, 29]}},  # overlaps c.bias
        {**SOUND, "x" * 2000: {"dtype": "U8", "shape": [0], "data_offsets": [29, 29]}},
        {**SOUND, "d": {"dtype": "U8", "shape": [2**62, 4, 0], "data_offsets": [29, 29]}},  # empty, and yet too large
        {name: entry for name, entry in SOUND.items() if name != "b"},  # leaves a gap
        {name: entry for name, entry in SOUND.items() if name != "c.bias"},  # data behind the last tensor
    ],
)
def test_an_unsound_header_is_refused(header: object) -> None:
    with pytest.raises(InvalidModel):
        parsed(header)


def test_more_tensors_than_any_model_has_are_refused_before_they_are_read() -> None:
    with pytest.raises(InvalidModel, match="more than"):
        parsed(b'{"a":"' + b'","' * 2_000_000 + b'"}')


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(sorted(ITEM_BYTES)) | junk,
        "shape": st.lists(st.integers(-2, 2**65) | st.integers(0, 8), max_size=4) | junk,
        "data_offsets": st.lists(st.integers(-2, 64), min_size=2, max_size=2) | junk,
        "more": junk,
    },
)


@given(st.dictionaries(st.text(max_size=8), entries | junk, max_size=5), st.integers(0, 80))
def test_whatever_json_the_header_is_nothing_but_invalid_model_is_raised(header: Any, data_bytes: int) -> None:
    try:
        found = parsed(header, data_bytes)
    except InvalidModel:
        return
    assert sum(entry.size_bytes for entry in found) == data_bytes


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_bytes_change_nothing_but_invalid_model_is_raised(changes: list[tuple[int, int]]) -> None:
    header = bytearray(json.dumps(SOUND).encode())
    for position, value in changes:
        header[position % len(header)] = value
    try:
        found = parsed(bytes(header))
    except InvalidModel:
        return
    assert sum(entry.size_bytes for entry in found) == DATA_BYTES


@given(st.binary(max_size=64), st.integers(0, 2**64 - 1))
def test_a_file_of_anything_is_refused_whatever_length_it_claims(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(struct.pack("<Q", length) + data)
    try:
        tensors = open_tensors(Files({"model.safetensors": path}))
    except InvalidModel:
        return
    assert all(tensor.rows >= 0 for tensor in tensors.values())


def checkpoint(folder: Path, **tensors: np.ndarray) -> Files:
    names = {
        "float32": "F32",
        "float16": "F16",
        "uint16": "BF16",
        "uint8": "F8_E4M3",
        "int8": "F8_E5M2",
        "int64": "I64",
    }
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.tobytes()
        dtype = names[values.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return Files.of_folder(folder)


def test_rows_are_read_as_they_are_written(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    halves = np.array([1.5, -65504.0, 6e-8], np.float16)
    upper = np.array([0x3F80, 0xC2F7, 0x7F80], np.uint16)
    whole = np.array(7, np.int64)
    tensors = open_tensors(checkpoint(tmp_path, values=values, halves=halves, upper=upper, whole=whole))
    assert np.array_equal(tensors["values"].read(1, 3), values[1:3])
    assert np.array_equal(tensors["halves"].all(), halves.astype(np.float32))
    assert np.array_equal(tensors["upper"].all(), np.array([1.0, -123.5, np.inf], np.float32))
    assert tensors["whole"].all() == 7
    assert tensors["values"].read(2, 2).shape == (0, 3, 4)


def test_eight_bit_floats_are_what_their_standard_says(tmp_path: Path) -> None:
    every = np.arange(256, dtype=np.uint8)
    tensors = open_tensors(checkpoint(tmp_path, e4m3=every, e5m2=every.view(np.int8)))
    e4m3, e5m2 = tensors["e4m3"].all(), tensors["e5m2"].all()
    assert (e4m3[0x7E], e4m3[0x01], e4m3[0x08], e4m3[0xB8]) == (448.0, 2.0**-9, 2.0**-6, -1.0)
    assert np.isnan(e4m3[[0x7F, 0xFF]]).all()
    assert np.isfinite(np.delete(e4m3, [0x7F, 0xFF])).all()
    assert (e5m2[0x7B], e5m2[0x01], e5m2[0x3C], e5m2[0x7C]) == (57344.0, 2.0**-16, 1.0, np.inf)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    tensor = open_tensors(checkpoint(tmp_path, a=np.zeros((4, 4), np.float32)))["a"]
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InvalidModel, match="changed"):
        tensor.read(0, 4)
    path.unlink()
    with pytest.raises(InvalidModel, match="cannot be read"):
        tensor.read(0, 4)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidModel, match="no regular file"):
        open_tensors(Files({"model.safetensors": tmp_path / "pipe"}))
