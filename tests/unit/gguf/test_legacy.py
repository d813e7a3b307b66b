"""Promises of service.gguf.legacy: an old file becomes the model that it was; whatever else comes is refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.files import facts, read_header
from service.gguf.legacy import is_legacy, old_file, upgrade
from tests.old_files import contents, write_ggjt, write_gguf_v1, write_llama


def quiet(fraction: float, what: str) -> None:
    assert 0.0 <= fraction <= 1.0
    assert what


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("old")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return write_llama(folder / "llama.gguf", "Q4_0", layers=1)


@pytest.fixture(scope="module")
def ggjt(folder: Path, llama: Path) -> bytes:
    return write_ggjt(llama, folder / "whole.ggjt").read_bytes()


@pytest.fixture(scope="module")
def gguf_v1(folder: Path, llama: Path) -> bytes:
    return write_gguf_v1(llama, folder / "whole.v1").read_bytes()


def refusal(folder: Path, data: bytes) -> str:
    source, target = folder / "bad", folder / "bad.gguf"
    source.write_bytes(data)
    with pytest.raises(InvalidModel) as caught:
        upgrade(source, target, quiet)
    assert str(folder) not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("quantization", ["F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_ggjt_file_becomes_the_gguf_file_that_it_was_made_from(quantization: str, tmp_path: Path) -> None:
    original = write_llama(tmp_path / "llama.gguf", quantization)
    old = write_ggjt(original, tmp_path / "old.bin")
    assert is_legacy(old)
    assert upgrade(old, tmp_path / "new.gguf", quiet) == "ggjt version 3"
    pairs, tensors = contents(tmp_path / "new.gguf")
    expected_pairs, expected_tensors = contents(original)
    pairs.pop("general.quantization_version", None)
    assert pairs == expected_pairs
    assert tensors == expected_tensors
    assert facts(read_header(tmp_path / "new.gguf")).quantization == quantization


def test_a_ggjt_file_with_shared_keys_is_llama_2(tmp_path: Path) -> None:
    original = write_llama(tmp_path / "llama.gguf", "Q8_0", kv_heads=2)
    upgrade(write_ggjt(original, tmp_path / "old.bin"), tmp_path / "new.gguf", quiet)
    pairs, _ = contents(tmp_path / "new.gguf")
    assert pairs["llama.attention.head_count_kv"] == 2
    assert pairs["llama.context_length"] == 4096
    assert pairs["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_a_gguf_file_of_version_1_becomes_the_same_of_version_3(tmp_path: Path, llama: Path, gguf_v1: bytes) -> None:
    (tmp_path / "old").write_bytes(gguf_v1)
    assert is_legacy(tmp_path / "old")
    assert upgrade(tmp_path / "old", tmp_path / "new.gguf", quiet) == "GGUF version 1"
    assert contents(tmp_path / "new.gguf") == contents(llama)
    assert (tmp_path / "new.gguf").read_bytes() == llama.read_bytes()


def test_current_files_and_others_are_no_legacy(tmp_path: Path, llama: Path) -> None:
    assert not is_legacy(llama)
    (tmp_path / "text").write_text("GGUF is a format")
    assert not is_legacy(tmp_path / "text")
    assert not is_legacy(tmp_path)
    assert not is_legacy(tmp_path / "nothing")
    with pytest.raises(InvalidModel, match="neither"):
        upgrade(tmp_path / "text", tmp_path / "new.gguf", quiet)


@pytest.mark.parametrize(
    ("quantization", "version", "magic", "accepted"),
    [
        ("F16", 1, b"tjgg", True),
        ("Q5_1", 1, b"tjgg", False),
        ("Q5_1", 2, b"tjgg", True),
        ("Q4_0", 2, b"tjgg", False),
        ("Q8_0", 2, b"tjgg", False),
        ("F16", 1, b"fmgg", True),
        ("Q4_0", 1, b"fmgg", False),
        ("F16", 0, b"lmgg", False),
    ],
)
def test_older_versions_are_read_where_their_weights_are_laid_out_as_today(
    quantization: str, version: int, magic: bytes, accepted: bool, tmp_path: Path
) -> None:
    original = write_llama(tmp_path / "llama.gguf", quantization, layers=1)
    old = write_ggjt(original, tmp_path / "old.bin", version=version, magic=magic)
    assert is_legacy(old)
    if accepted:
        upgrade(old, tmp_path / "new.gguf", quiet)
        assert contents(tmp_path / "new.gguf")[1] == contents(original)[1]
    else:
        message = refusal(tmp_path, old.read_bytes())
        assert "fetch the model's GGUF file" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "never was"),
        (lambda data: data[:8] + struct.pack("<I", 2**31) + data[12:], "2147483648 tokens"),
        (lambda data: data[:12] + struct.pack("<I", 300) + data[16:], "attention heads|embedding"),
        (lambda data: data[:20] + struct.pack("<I", 0) + data[24:], "attention heads"),
        (lambda data: data[:24] + struct.pack("<I", 2**20) + data[28:], "layers"),
        (lambda data: data[:36] + struct.pack("<I", 5000) + data[40:], "5000 bytes; 4096"),
        (lambda data: data.replace(b"layers.0.attention.wq", b"layers.0.attention.zz"), "no LLaMA model"),
        (lambda data: data.replace(b"layers.0.attention.wq", b"layers.0.attention.wo"), "twice"),
        (lambda data: data[:-1], "truncated"),
        (lambda data: data + b"more", "truncated"),
        (lambda data: data[:10], "truncated"),
    ],
)
def test_what_is_wrong_with_a_ggjt_file_is_said(
    change: Callable[[bytes], bytes], words: str, ggjt: bytes, tmp_path: Path
) -> None:
    message = refusal(tmp_path, change(ggjt))
    assert re.search(words, message), message


def test_tokens_have_a_budget_together(tmp_path: Path, ggjt: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_file, "MAX_HEADER_BYTES", 2**20)
    token = struct.pack("<I", 4096) + bytes(4100)
    message = refusal(tmp_path, ggjt[:8] + struct.pack("<I", 500) + ggjt[12:36] + token * 500)
    assert "metadata is larger than 1 MiB" in message


def _mutated(data: bytes, edits: list[tuple[int, bytes]], cut: int | None) -> bytes:
    out = bytearray(data)
    for position, raw in edits:
        out[position : position + len(raw)] = raw
    return bytes(out if cut is None else out[:cut])


@pytest.mark.parametrize("kind", ["ggjt", "gguf_v1"])
def test_mutants_are_upgraded_or_refused_with_invalid_model(
    kind: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    data: bytes = request.getfixturevalue(kind)
    # Most numbers lie in the first kilobytes, and before each tensor.
    places = st.one_of(st.integers(0, 200), st.integers(0, 8000), st.integers(0, len(data) - 1))
    values = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]).map(lambda number: struct.pack("<I", number)),
    )

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        edits=st.lists(st.tuples(places, values), max_size=4),
        cut=st.one_of(st.none(), st.none(), st.none(), st.integers(0, len(data))),
    )
    def check(edits: list[tuple[int, bytes]], cut: int | None) -> None:
        source, target = folder / "mutant", folder / "mutant.gguf"
        source.write_bytes(_mutated(data, edits, cut))
        target.unlink(missing_ok=True)
        with suppress(InvalidModel):
            if is_legacy(source):
                upgrade(source, target, quiet)
                read_header(target)

    check()
