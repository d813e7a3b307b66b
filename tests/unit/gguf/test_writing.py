"""GGUF files as they are written: readable by gguf, rounded as numpy rounds, hashed as they lie on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.domain.errors import InvalidModel
from service.gguf.architectures.rules import Weights
from service.gguf.fields import Field
from service.gguf.writing import Plan, encoded

FIELDS = (
    Field("general.architecture", "str", "llama"),
    Field("a.u32", "u32", 7),
    Field("a.f32", "f32", 0.5),
    Field("a.bool", "bool", False),
    Field("a.words", "arr[str]", ["x", "é", b"\xff"]),
    Field("a.whole", "arr[i32]", [-1, 2]),
    Field("a.floats", "arr[f32]", [0.25, -1.0]),
)


def weights(name: str, values: np.ndarray) -> Weights:
    rows = values.reshape(-1, values.shape[-1])
    return Weights(name, values.shape, lambda start, stop: rows[start:stop])


def test_what_is_written_is_read_by_gguf_as_it_was(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    values = {
        "wide.weight": random.standard_normal((3, 2_500_000), np.float32),  # rows longer than a block
        "tall.weight": random.standard_normal((70_001, 40), np.float32),  # more rows than one
        "cube.weight": random.standard_normal((3, 5, 7), np.float32),
        "vector.bias": random.standard_normal(9, np.float32),
    }
    kinds = {"wide.weight": "F16", "tall.weight": "BF16", "cube.weight": "F32", "vector.bias": "F32"}
    plan = Plan(FIELDS, [(weights(name, each), kinds[name]) for name, each in values.items()])
    said: list[float] = []
    written = plan.write(tmp_path / "a.gguf", lambda fraction, detail: said.append(fraction))
    data = (tmp_path / "a.gguf").read_bytes()
    assert (written.size_bytes, plan.size_bytes) == (len(data), len(data))
    assert written.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert said == sorted(said)
    assert said[-1] > 0.99
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert [list(found[name].shape) for name in values] == [list(each.shape[::-1]) for each in values.values()]
    assert np.array_equal(found["wide.weight"].data, values["wide.weight"].astype(np.float16))
    exact = gguf.quants.quantize(values["tall.weight"], gguf.GGMLQuantizationType.BF16)
    assert np.array_equal(found["tall.weight"].data, exact)
    assert np.array_equal(found["cube.weight"].data, values["cube.weight"])
    assert reader.fields["a.u32"].contents() == 7
    assert reader.fields["a.floats"].contents() == [0.25, -1.0]
    assert bytes(reader.fields["a.words"].parts[reader.fields["a.words"].data[2]]) == b"\xff"


def test_numbers_that_are_none_are_refused() -> None:
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(InvalidModel, match="NaN"):
            encoded(np.array([[1.0, value]], np.float32), "BF16", "a")
    with pytest.raises(InvalidModel, match="65504"):
        encoded(np.array([[70_000.0, -70_000.0]], np.float32), "F16", "a")
    both = np.array([[3e38, 3e38, -3e38]], np.float32)  # whose sum overflows, and which are numbers
    assert bytes(encoded(both, "F32", "a")) == both.tobytes()


@given(arrays(np.float32, (2, 5), elements=st.floats(-65504, 65504, width=32)))
def test_numbers_are_rounded_to_the_nearest(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    assert bytes(encoded(values, "F16", "a")) == halves.tobytes()
    upper = np.frombuffer(encoded(values, "BF16", "a"), np.uint16).astype(np.uint32) << 16
    error = np.abs(upper.view(np.float32) - values.reshape(-1))
    assert (error <= np.abs(values.reshape(-1)) / 256 + np.float32(1e-40)).all()


def test_a_name_that_gguf_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidModel, match="longer"):
        Plan(FIELDS, [(weights("x" * 64, np.zeros((1, 1), np.float32)), "F32")])
