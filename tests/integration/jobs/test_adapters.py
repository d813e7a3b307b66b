"""Adapters taken in with the real store and the real llama.cpp: what is entered fits its model and computes numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest

from service.domain.errors import BlobNotFound, InvalidName, InvalidParameter, ModelNotFound
from service.domain.jobs import AdapterSpec, JobStatus, NamedBlob, StoredFile
from service.domain.names import parse_ref
from tests import adapters, tiny_models

GLOSS = parse_ref("gloss").key


def put(home, path: Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with home.blobs.open_upload(digest, len(data)) as upload:
        upload.write(data)
        upload.finish()
    return digest


async def added(home, source, name="tone", **where):
    return await home.ended(
        await home.runner.submit_adapter(AdapterSpec(name, StoredFile(source.name, source.digest), **where))
    )


@pytest.fixture(scope="module")
def peft(tmp_path_factory):
    """The folder of a PEFT adapter for gloss."""
    gloss = Path(__file__).parents[3] / "demo" / "gloss-5m-f16.gguf"
    return adapters.write_peft(tmp_path_factory.mktemp("peft") / "tone", adapters.factors(gloss), dtype="BF16")


async def test_a_folder_of_peft_files_becomes_an_adapter(home, source, peft):
    job = await added(home, source, path=str(peft))
    assert (job.status, job.error, job.result) == (JobStatus.SUCCEEDED, None, ("tone",))
    assert [step.name for step in job.steps] == ["convert", "check", "load"]
    adapter = home.catalog.adapters.get(GLOSS, "TONE")
    assert (adapter.name, adapter.facts.rank, adapter.facts.alpha, adapter.facts.tensors) == ("tone", 4, 8.0, 84)
    assert home.blobs.verify(adapter.digest)
    assert home.blobs.size(adapter.digest) == adapter.size_bytes
    assert home.catalog.blob(adapter.digest).in_use
    assert home.incoming() == []


async def test_the_files_of_an_adapter_may_be_uploads(home, source, peft):
    files = tuple(NamedBlob(path.name, put(home, path)) for path in sorted(peft.iterdir()))
    by_upload = await added(home, source, "by-upload", files=files)
    by_path = await added(home, source, "by-path", path=str(peft))
    assert by_upload.error is None
    assert by_path.error is None
    one, other = home.catalog.adapters.all(GLOSS)
    assert one.digest == other.digest, "the same files make the same bytes"


async def test_a_gguf_adapter_is_copied_from_a_path_and_used_in_place_as_an_upload(home, source, gloss, tmp_path):
    path = tmp_path / "adapter.gguf"
    tiny_models.write_adapter(path, gloss)
    copied = await added(home, source, "copied", path=str(path))
    digest = put(home, path)
    uploaded = await added(home, source, "uploaded", digest=digest)
    assert [step.name for step in copied.steps] == ["copy", "check", "load"]
    assert [step.name for step in uploaded.steps] == ["check", "load"]
    assert {adapter.digest for adapter in home.catalog.adapters.all(GLOSS)} == {digest}
    assert path.exists()


async def test_a_name_that_stands_for_another_adapter_keeps_it(home, source, gloss, tmp_path):
    for seed in (1, 2):
        tiny_models.write_adapter(tmp_path / f"{seed}.gguf", gloss, seed=seed)
    first = await added(home, source, path=str(tmp_path / "1.gguf"))
    again = await added(home, source, "Tone", path=str(tmp_path / "1.gguf"))
    other = await added(home, source, "Tone", path=str(tmp_path / "2.gguf"))
    assert (first.result, again.result) == (("tone",), ("tone",))
    assert (other.status, other.error.code) == (JobStatus.FAILED, "name_taken")
    assert len(home.catalog.adapters.all(GLOSS)) == 1


def not_a_number(path: Path, base: Path) -> None:
    """An adapter with one value that is none, in the middle of a factor."""
    tiny_models.write_adapter(path, base)
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name.endswith("lora_b"))
    data = bytearray(path.read_bytes())
    start = tensor.data_offset + 4 * (tensor.n_elements // 2)
    data[start : start + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)


def overflowing(path: Path, base: Path) -> None:
    """Finite values whose products are none."""
    tiny_models.write_adapter(path, base, strength=1e36)


HOSTILE = {
    "not a number": (not_a_number, "no finite numbers"),
    "overflowing": (overflowing, "no numbers"),
    "another architecture": (lambda path, _: None, "architecture"),
    "a model": (lambda path, base: path.write_bytes(base.read_bytes()), "no adapter"),
    "truncated": (lambda path, base: tiny_models.write_adapter(path, base), "truncated"),
    "text": (lambda path, _: path.write_text("no GGUF at all"), "GGUF"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_what_would_harm_the_model_is_refused_and_leaves_nothing(kind, home, source, gloss, tiny, tmp_path):
    path = tmp_path / "hostile.gguf"
    make, reason = HOSTILE[kind]
    make(path, gloss)
    if kind == "another architecture":
        tiny_models.write_adapter(path, tiny["recurrent"])
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-4096])
    job = await added(home, source, path=str(path))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "invalid_model"), job.error
    assert reason in job.error.message
    assert home.catalog.adapters.all() == []
    assert home.incoming() == []
    assert len(home.catalog.blobs()) == 1


async def test_what_cannot_be_begun_is_refused_at_once(home, source, peft, tmp_path):
    base = StoredFile(source.name, source.digest)
    nowhere = f"sha256:{'0' * 64}"
    for spec, error in (
        (AdapterSpec("a/b", base, path=str(peft)), InvalidName),
        (AdapterSpec("tone", base), InvalidParameter),
        (AdapterSpec("tone", base, path=str(peft), digest=source.digest), InvalidParameter),
        (AdapterSpec("tone", base, path=str(tmp_path / "missing")), InvalidParameter),
        (AdapterSpec("tone", base, path="tone"), InvalidParameter),
        (AdapterSpec("tone", base, digest=nowhere), BlobNotFound),
        (AdapterSpec("tone", base, files=(NamedBlob("adapter_config.json", nowhere),)), BlobNotFound),
        (AdapterSpec("tone", StoredFile("nobody", nowhere), path=str(peft)), ModelNotFound),
    ):
        with pytest.raises(error):
            await home.runner.submit_adapter(spec)


async def test_adapters_go_with_their_model_and_their_bytes_with_the_sweep(home, source, peft):
    await added(home, source, path=str(peft))
    digest = home.catalog.adapters.get(GLOSS, "tone").digest
    assert home.blobs.sweep(home.catalog.referenced_digests(), 0.0) == []
    home.catalog.delete(parse_ref("gloss"))
    assert home.catalog.adapters.all() == []
    assert home.catalog.blob(digest) is None
    assert digest in home.blobs.sweep(home.catalog.referenced_digests(), 0.0)
