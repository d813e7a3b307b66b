"""Importance matrices as files: what is written is read again, and a hostile file is refused and nothing worse."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.quantization.importance import Entry, Importance, weights
from service.quantization.importance_files import read_importance, write_importance

MADE = Importance(
    {
        "blk.0.attn_q.weight": Entry(np.array([[1.5, 2.0, 0.0]], dtype=np.float32), np.array([512], dtype=np.float32)),
        "blk.0.ffn_up_exps.weight": Entry(
            np.arange(8, dtype=np.float32).reshape(4, 2), np.array([3, 0, 5, 7], dtype=np.float32)
        ),
    },
    chunks=3,
    chunk_tokens=512,
    datasets=("calibration", "more"),
)

_floats = st.floats(0, 2.0**100, width=32)
_entries = st.integers(1, 3).flatmap(
    lambda experts: st.integers(1, 5).flatmap(
        lambda columns: st.builds(
            lambda sums, counts: Entry(
                np.array(sums, dtype=np.float32).reshape(experts, columns), np.array(counts, dtype=np.float32)
            ),
            st.lists(_floats, min_size=experts * columns, max_size=experts * columns),
            st.lists(st.integers(0, 2**24), min_size=experts, max_size=experts),
        )
    )
)
_names = st.text("abcdefgh._0123456789", min_size=1, max_size=50)
_matrices = st.builds(
    Importance,
    st.dictionaries(_names, _entries, min_size=1, max_size=5),
    st.integers(0, 2**31 - 1),
    st.integers(1, 2**24),
    st.lists(st.text("abc déf.txt", min_size=1), max_size=3).map(tuple),
)

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def same(one: Importance, other: Importance) -> bool:
    return (
        (one.chunks, one.chunk_tokens, one.datasets) == (other.chunks, other.chunk_tokens, other.datasets)
        and set(one.entries) == set(other.entries)
        and all(
            np.array_equal(one.entries[name].sums, other.entries[name].sums)
            and np.array_equal(one.entries[name].counts, other.entries[name].counts)
            for name in one.entries
        )
    )


def written(path: Path, matrix: Importance = MADE) -> bytes:
    write_importance(matrix, path)
    return path.read_bytes()


def legacy(*, name: bytes = b"blk.0.attn_q.weight", chunks: int = 4, values: int = 3, tail: bytes = b"") -> bytes:
    data = struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii", chunks, values)
    return data + np.array([4.0, 8.0, 0.0][:values], dtype="<f4").tobytes() + tail


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InvalidModel) as error:
        read_importance(path)
    assert str(path) not in error.value.message
    return error.value.message


@given(_matrices)
@in_one_folder
def test_what_is_written_is_read_again(tmp_path: Path, matrix: Importance) -> None:
    write_importance(matrix, tmp_path / "matrix")
    assert same(read_importance(tmp_path / "matrix"), matrix)


def test_equal_matrices_are_equal_files_whatever_order_their_tensors_came_in(tmp_path: Path) -> None:
    turned = Importance(dict(reversed(MADE.entries.items())), MADE.chunks, MADE.chunk_tokens, MADE.datasets)
    assert written(tmp_path / "a") == written(tmp_path / "b", turned)


def test_the_file_is_a_gguf_as_llama_imatrix_writes_it(tmp_path: Path) -> None:
    written(tmp_path / "matrix.gguf")
    reader = gguf.GGUFReader(tmp_path / "matrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["calibration", "more"]
    assert reader.fields["imatrix.chunk_count"].contents() == 3
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    shapes = {tensor.name: (tensor.shape.tolist(), tensor.tensor_type) for tensor in reader.tensors}
    assert shapes == {
        "blk.0.attn_q.weight.in_sum2": ([3], gguf.GGMLQuantizationType.F32),
        "blk.0.attn_q.weight.counts": ([1], gguf.GGMLQuantizationType.F32),
        "blk.0.ffn_up_exps.weight.in_sum2": ([2, 4], gguf.GGMLQuantizationType.F32),
        "blk.0.ffn_up_exps.weight.counts": ([1, 4], gguf.GGMLQuantizationType.F32),
    }


def test_datasets_that_are_paths_of_another_machine_show_only_their_last_part(tmp_path: Path) -> None:
    names = ("/home/someone/secret/wiki.txt", "C:\\texts\\a.txt", "odd\nname")
    written(tmp_path / "matrix", Importance(MADE.entries, 1, 512, names))
    assert read_importance(tmp_path / "matrix").datasets == ("wiki.txt", "a.txt", "odd name")


# --- the older format


def test_the_older_format_is_read_and_weighs_the_same(tmp_path: Path) -> None:
    tail = struct.pack("<ii", 7, 13) + b"some/wiki.txt"
    (tmp_path / "old.dat").write_bytes(legacy(tail=tail))
    read = read_importance(tmp_path / "old.dat")
    assert weights(read)["blk.0.attn_q.weight"].tolist() == [1, 2, 0]
    assert (read.chunks, read.chunk_tokens, read.datasets) == (7, 512, ("wiki.txt",))
    assert read.entries["blk.0.attn_q.weight"].counts.tolist() == [4 * 512]


def test_the_oldest_files_say_nothing_of_their_text(tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(legacy())
    read = read_importance(tmp_path / "old.dat")
    assert (read.chunks, read.datasets) == (4, ())


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"some text that is no importance matrix at all",
        struct.pack("<i", -1),
        struct.pack("<i", 2**31 - 1),
        legacy(values=0),
        legacy(chunks=-1),
        legacy(name=b"\xff\xfe"),
        legacy(name=b""),
        legacy(name=b"x" * 64),
        legacy(tail=struct.pack("<ii", 1, 2**31 - 1)),
        legacy(tail=struct.pack("<ii", 1, -2)),
        struct.pack("<ii", 1, -5) + bytes(40),
        legacy()[:-12] + np.array([1, np.nan, 1], dtype="<f4").tobytes(),
        legacy()[:-12] + np.array([1, -1, 1], dtype="<f4").tobytes(),
        legacy()[:-12] + np.array([3e38, 1, 1], dtype="<f4").tobytes(),
    ],
)
def test_a_hostile_older_file_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path / "bad.dat", data)


def test_an_older_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = legacy()
    for length in range(len(whole)):
        refused(tmp_path / "cut.dat", whole[:length])


# --- hostile GGUF files


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "matrix")
    data_end = len(whole) - 32 + 16  # four counts, then padding that nobody reads
    for length in range(data_end):
        refused(tmp_path / "cut", whole[:length])


@given(st.data())
@in_one_folder
def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(written(tmp_path / "matrix"))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "changed").write_bytes(whole)
    try:
        read = read_importance(tmp_path / "changed")
    except InvalidModel:
        return
    for values in weights(read).values():
        assert np.isfinite(values).all()
        assert (values >= 0).all()


def test_values_that_are_no_sums_of_squares_are_refused_by_name(tmp_path: Path) -> None:
    for value in (-1.0, np.nan, np.inf):
        entries = {"blk.3.x.weight": Entry(np.full((1, 2), value, dtype=np.float32), np.ones(1, dtype=np.float32))}
        data = written(tmp_path / "matrix", Importance(entries, 1, 512, ()))
        assert "blk.3.x.weight" in refused(tmp_path / "bad", data)


def test_a_model_is_no_importance_matrix(tmp_path: Path) -> None:
    model = Path(__file__).resolve().parents[3] / "demo" / "gloss-5m-f16.gguf"
    with pytest.raises(InvalidModel, match="no importance matrix"):
        read_importance(model)


def _with(path: Path, tensors: dict[str, np.ndarray], **keys: int) -> bytes:
    writer = gguf.GGUFWriter(path, "none")
    writer.add_type("imatrix")
    for key, value in ({"chunk_count": 1, "chunk_size": 512} | keys).items():
        writer.add_uint32(f"imatrix.{key}", value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_sums_and_counts_must_fit_each_other(tmp_path: Path) -> None:
    ones = np.ones(6, dtype=np.float32)
    assert "not both" in refused(tmp_path / "bad", _with(tmp_path / "a", {"x.in_sum2": ones}))
    uneven = {"x.in_sum2": ones, "x.counts": ones[:4]}
    assert "evenly" in refused(tmp_path / "bad", _with(tmp_path / "b", uneven))
    halves = {"x.in_sum2": ones.astype(np.float16), "x.counts": ones[:1]}
    assert "not F32" in refused(tmp_path / "bad", _with(tmp_path / "c", halves))
    assert "no tensors" in refused(tmp_path / "bad", _with(tmp_path / "d", {"other": ones}))
    assert "chunk_size" in refused(tmp_path / "bad", _with(tmp_path / "e", {"other": ones}, chunk_size=0))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("nul\0")):
        with pytest.raises(InvalidModel):
            read_importance(path)
    refused(tmp_path / "empty", b"")
