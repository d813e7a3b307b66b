"""Whatever a tokenizer's files hold, reading them gives a vocabulary or InvalidModel, and nothing else."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.domain.errors import InvalidModel
from service.gguf.checkpoint_files import Files
from service.gguf.vocabulary import read_vocabulary
from service.gguf.vocabulary.piece_model import read_model
from service.gguf.vocabulary.tokens import Kind
from tests import checkpoint_tokenizers, checkpoints
from tests.unit.gguf.vocabulary.conftest import ARCHITECTURES, Tokenizer

MODEL = checkpoint_tokenizers.sentencepiece_model(
    [("<unk>", 0.0, Kind.UNKNOWN), ("<s>", 0.0, Kind.CONTROL), ("▁a", -1.5, Kind.NORMAL), ("b", -2.5, Kind.NORMAL)]
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 1 << 40),
    st.floats(allow_nan=True),
    st.sampled_from(["", "a", "\ud800", "\0", "<0x41>", "x" * 70000, "Sequence", "ByteLevel", "TemplateProcessing"]),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from(["id", "type", "content", "SpecialToken"]), st.integers(0, 3), max_size=2),
)


class InMemory(Files):
    """Files whose JSON is at hand already."""

    def __init__(self, paths: dict[str, Path], values: dict[str, dict[str, Any]]) -> None:
        super().__init__(paths)
        self._values = values

    def json(self, name: str) -> dict[str, Any] | None:
        return self._values.get(name)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Path], dict[str, Any], int]]:
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {}
    for family in checkpoints.FAMILIES:
        tokenizer = Tokenizer(folder / family, family)
        tokenizer.change("config.json", lambda config: config.update(bos_token_id=1, eos_token_id=[2]))
        paths = {path.name: path for path in tokenizer.folder.iterdir() if path.is_file()}
        texts = {name: json.loads(path.read_text()) for name, path in paths.items() if name.endswith(".json")}
        made[family] = (paths, texts, tokenizer.size)
    return made


def places(value: object, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed: every key, and the ends of long lists and objects."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    few = keys if len(keys) <= 12 else [*keys[:6], *keys[-6:]]
    return [found for key in few for found in [(*place, key), *places(value[key], (*place, key))]]  # type: ignore[index]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_value_of_another_kind_anywhere_gives_a_vocabulary_or_an_invalid_model(
    data: st.DataObject, originals: dict[str, tuple[dict[str, Path], dict[str, Any], int]]
) -> None:
    family = data.draw(st.sampled_from(list(originals)))
    paths, texts, size = originals[family]
    changed = copy.deepcopy(texts)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(name for name, value in changed.items() if isinstance(value, dict))))
        *way, last = data.draw(st.sampled_from(places(changed[name]) or [("added",)]))
        parent = changed[name]
        for key in way:
            parent = parent[key]
        if isinstance(parent, dict) and data.draw(st.booleans()):
            parent.pop(last, None)
        else:
            parent[last] = data.draw(VALUES)
    size = data.draw(st.sampled_from([size, size, size, 0, 1, size - 1, size + 7]))
    with contextlib.suppress(InvalidModel):
        vocabulary = read_vocabulary(InMemory(paths, changed), ARCHITECTURES.get(family, family), size)
        fields = {field.key: field.value for field in vocabulary.fields}
        texts_ = fields["tokenizer.ggml.tokens"]
        assert len(texts_) == vocabulary.size == len(fields["tokenizer.ggml.token_type"])
        assert len({text.split(b"\0")[0] for text in texts_}) >= len(texts_) - texts_.count(b"")


def test_pieces_are_read_as_they_were_written() -> None:
    pieces = read_model(MODEL).pieces
    assert [piece.text.decode() for piece in pieces] == ["<unk>", "<s>", "▁a", "b"]
    assert [piece.score for piece in pieces] == [0.0, 0.0, -1.5, -2.5]
    assert [piece.kind for piece in pieces] == [Kind.UNKNOWN, Kind.CONTROL, Kind.NORMAL, Kind.NORMAL]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(MODEL) - 1), st.binary(max_size=3), st.booleans())
def test_a_protobuf_with_changed_bytes_gives_pieces_or_an_invalid_model(at: int, new: bytes, cut: bool) -> None:
    with contextlib.suppress(InvalidModel):
        read_model(MODEL[:at] + new + (b"" if cut else MODEL[at + len(new) :]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_no_model_or_one(data: bytes) -> None:
    with contextlib.suppress(InvalidModel):
        assert read_model(data).pieces


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\x05\x0a",  # ends within a piece
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of more than 64 bits
        b"\x0a\xff\xff\xff\xff\x0f" + b"x" * 20,  # a length past the end
        b"\x0a\x07\x15\x00\x00\xc0\x7f\x0a\x00",  # a score that is no number
        b"\x0a\x02\x18\x09",  # an unknown type
        b"\x0a\x03\x0a\x01\xff",  # text that is no UTF-8
        b"\x0b\x0c",  # a group
        b"\x00\x00",  # field number zero
    ],
)
def test_protobuf_that_is_wrong_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidModel, match="SentencePiece model is damaged"):
        read_model(data)


@pytest.mark.parametrize("item", [None, 7, "x", [], {}, {"id": 1}, {"id": 1, "content": None}, {"id": True}])
def test_an_added_token_that_is_none_is_refused(item: object, tmp_path: Path) -> None:
    tokenizer = Tokenizer(tmp_path / "llama", "llama")
    tokenizer.change("tokenizer.json", lambda file: file["added_tokens"].append(item))
    with pytest.raises(InvalidModel, match="damaged"):
        tokenizer.fields()
