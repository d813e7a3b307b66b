"""Promises of service.gguf.splits: pieces are found and joined again; what does not belong together is refused."""

from __future__ import annotations

import shutil
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.files import read_header
from service.gguf.splits import merge, pieces_among, pieces_of
from tests.old_files import contents, write_llama, write_split


def quiet(fraction: float, what: str) -> None:
    assert 0.0 <= fraction <= 1.0
    assert what


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("whole") / "llama.gguf", "Q8_0", layers=1)


@pytest.fixture
def pieces(tmp_path: Path, llama: Path) -> list[Path]:
    found = write_split(llama, tmp_path / "split")
    assert len(found) == 3
    return list(found)


def refusal(pieces: list[Path], folder: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        merge(pieces, folder / "refused.gguf", quiet)
    assert not (folder / "refused.gguf").exists()
    return caught.value.message


def test_pieces_make_the_file_that_was_split(pieces: list[Path], llama: Path, tmp_path: Path) -> None:
    for piece in pieces:
        assert pieces_of(piece) == tuple(pieces)
    merge(pieces_of(pieces[1]), tmp_path / "whole.gguf", quiet)
    assert contents(tmp_path / "whole.gguf") == contents(llama)
    read_header(tmp_path / "whole.gguf")
    assert pieces_of(tmp_path / "whole.gguf") == ()


def test_the_first_piece_may_have_no_tensors(llama: Path, tmp_path: Path) -> None:
    pieces = write_split(llama, tmp_path / "split", bare=True)
    assert len(contents(pieces[0])[1]) == 0
    merge(pieces_of(pieces[0]), tmp_path / "whole.gguf", quiet)
    assert contents(tmp_path / "whole.gguf") == contents(llama)


def test_pieces_may_come_in_any_order_under_any_name(pieces: list[Path], llama: Path, tmp_path: Path) -> None:
    blobs = {name: tmp_path / name for name in ("one", "two", "three")}
    for piece, blob in zip(reversed(pieces), blobs.values(), strict=True):
        shutil.copy(piece, blob)
    assert pieces_among(blobs) == tuple(reversed(blobs.values()))
    assert pieces_among({"whole": llama}) == ()
    merge(list(blobs.values()), tmp_path / "whole.gguf", quiet)
    assert contents(tmp_path / "whole.gguf") == contents(llama)


def test_missing_pieces_are_named(pieces: list[Path]) -> None:
    pieces[1].unlink()
    with pytest.raises(InvalidModel, match=r"missing: model-00002-of-00003\.gguf;") as caught:
        pieces_of(pieces[0])
    assert str(pieces[0].parent) not in caught.value.message


def test_a_piece_with_a_name_of_its_own_is_refused_with_a_remedy(pieces: list[Path], tmp_path: Path) -> None:
    shutil.copy(pieces[0], tmp_path / "renamed.gguf")
    with pytest.raises(InvalidModel, match=r"name the pieces NAME-00001-of-00003\.gguf"):
        pieces_of(tmp_path / "renamed.gguf")
    shutil.copy(pieces[0], tmp_path / "model-00002-of-00003.gguf")
    with pytest.raises(InvalidModel, match="piece 1 of 3"):
        pieces_of(tmp_path / "model-00002-of-00003.gguf")


def test_what_does_not_belong_together_is_refused(pieces: list[Path], llama: Path, tmp_path: Path) -> None:
    first, second, third = pieces
    assert "missing: piece 3;" in refusal([first, second], tmp_path)
    assert "twice" in refusal([first, second, second], tmp_path)
    assert "not the pieces of one" in refusal([first, second, llama], tmp_path)
    assert "not the pieces of one" in refusal([llama], tmp_path)
    assert "not the pieces of one" in refusal([], tmp_path)
    others = write_split(llama, tmp_path / "others", most_tensors=8)
    assert "not the pieces of one" in refusal([first, *others], tmp_path)
    other_model = write_llama(tmp_path / "other.gguf", "F16", layers=2)
    foreign = write_split(other_model, tmp_path / "foreign", most_tensors=8)
    assert len(foreign) == 3
    assert "more than one piece" in refusal([first, second, foreign[2]], tmp_path) or "announces" in refusal(
        [first, second, foreign[2]], tmp_path
    )
    fewer = write_split(write_llama(tmp_path / "f.gguf", "F16", layers=1), tmp_path / "fewer", most_tensors=4)
    assert third.exists()
    assert refusal([first, fewer[1], fewer[2]], tmp_path)


def test_other_files_are_no_pieces(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "empty.gguf").touch()
    for path in (tmp_path / "text.gguf", tmp_path / "empty.gguf", tmp_path / "nothing.gguf", tmp_path):
        with pytest.raises(InvalidModel):
            pieces_of(path)


@pytest.mark.parametrize(("number", "count"), [(7, 3), (0, 60_000), (-1, 3)])
def test_impossible_numbers_are_refused(number: int, count: int, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_int32("split.no", number)
    writer.add_int32("split.count", count)
    writer.add_tensor("token_embd.weight", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InvalidModel):
        pieces_of(tmp_path / "odd.gguf")


def test_merging_takes_memory_for_headers_alone(tmp_path: Path) -> None:
    whole = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(whole, "llama")
    for number in range(4):
        writer.add_tensor(f"blk.{number}.ffn_up.weight", np.zeros((4096, 1024), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pieces = write_split(whole, tmp_path / "split", most_tensors=2)
    tracemalloc.start()
    merge(pieces, tmp_path / "whole.gguf", quiet)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert (tmp_path / "whole.gguf").stat().st_size > 64 * 2**20


def test_mutants_of_pieces_are_joined_or_refused_with_invalid_model(
    llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mutants")
    pieces = write_split(llama, folder / "split", most_tensors=8)
    sound = pieces[0].read_bytes()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 400), st.binary(min_size=1, max_size=8), st.booleans())
    def check(place: int, raw: bytes, cut: bool) -> None:
        mutant = bytearray(sound)
        # The split keys are the last of the metadata.
        at = sound.index(b"split.no") - 50 + place if place > 200 else place
        mutant[at : at + len(raw)] = raw
        pieces[0].write_bytes(mutant[: at + 1] if cut else mutant)
        (folder / "out.gguf").unlink(missing_ok=True)
        with suppress(InvalidModel):
            merge(pieces_of(pieces[0]), folder / "out.gguf", quiet)
            read_header(folder / "out.gguf")

    check()
