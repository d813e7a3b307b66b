"""Imports of what is no current GGUF file: checkpoints, splits and old files become one variant, or nothing stays."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from service.domain.errors import BlobNotFound, InvalidParameter
from service.domain.jobs import ImportSpec, JobStatus, NamedBlob, QuantizeSpec
from service.domain.recipes import Recipe
from tests import checkpoints

SOME = ("llama", "gemma3", "phi3")  # all of them: tests/integration/gguf/test_round_trip.py


@pytest.fixture
def llama(tmp_path) -> Path:
    return checkpoints.write(tmp_path / "llama", "llama", shards=2)


def put(home, path: Path) -> str:
    data = path.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with home.blobs.open_upload(digest, len(data)) as upload:
        if not upload.exists:
            upload.write(data)
        upload.finish()
    return digest


async def test_a_folder_becomes_a_variant_that_says_what_it_was(empty, llama):
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", path=str(llama))))
    assert (job.error, [step.name for step in job.steps]) == (None, ["convert", "check", "plan", "load"])
    variant = empty.catalog.resolve("tiny")
    assert (variant.name, variant.facts.shape.architecture) == ("tiny:F16", "llama")
    assert variant.lineage.converted_from == "safetensors (LlamaForCausalLM, F32)"
    assert (variant.lossy, variant.lineage.job_id) == (False, job.id)
    assert empty.blobs.verify(variant.digest)
    assert empty.incoming() == []


async def test_uploads_of_the_same_files_become_the_same_variant(empty, llama):
    await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", path=str(llama))))
    files = tuple(NamedBlob(path.name, put(empty, path)) for path in llama.iterdir())
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("other", files=files)))
    assert (job.error, job.result) == (None, ("other:F16",))
    assert empty.catalog.resolve("other").digest == empty.catalog.resolve("tiny").digest


async def test_the_level_in_the_name_is_what_a_checkpoint_becomes(empty, llama):
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny:BF16", path=str(llama))))
    assert (job.error, job.result) == (None, ("tiny:BF16",))
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny:Q8_0", path=str(llama))))
    assert job.error.code == "label_mismatch"
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", path=str(llama), convert_to="F32")))
    assert job.result == ("tiny:F32",)


async def test_a_gguf_file_of_another_level_than_it_was_to_become_is_refused_and_not_stored(empty, gloss):
    upload = put(empty, gloss)
    for source in ({"path": str(gloss)}, {"digest": upload}):
        job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", convert_to="F32", **source)))
        assert job.error.code == "not_supported"
        assert "quantize it to F32" in job.error.message
    assert (empty.names(), empty.incoming()) == ([], [])
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", str(gloss), convert_to="F16")))
    assert job.result == ("tiny:F16",)


@pytest.mark.parametrize("family", SOME)
async def test_a_checkpoint_of_any_family_can_be_quantized_and_loads(empty, tmp_path, family):
    folder = checkpoints.write(tmp_path / family, family, dtype="BF16")
    source = await empty.imported(folder, family)
    assert (source.facts.quantization, source.lineage.converted_from.endswith(", BF16)")) == ("BF16", True)
    spec = QuantizeSpec(source.name, source.digest, ("Q8_0", "Q4_K_M", "IQ4_XS"), recipe=Recipe())
    job = await empty.ended(await empty.runner.submit_quantize(spec))
    assert (job.error, len(job.result)) == (None, 3)


async def test_what_is_wrong_with_a_folder_is_told_and_nothing_stays(empty, llama):
    def changed(name: str, **values: object) -> None:
        path = llama / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    async def refused() -> str:
        job = await empty.ended(await empty.runner.submit_import(ImportSpec("tiny", path=str(llama))))
        assert (job.status, job.error.code) == (JobStatus.FAILED, "invalid_model")
        assert (empty.names(), empty.incoming()) == ([], [])
        assert str(llama) not in job.error.message
        return job.error.message

    changed("config.json", architectures=["RecurrentGemmaForCausalLM"])
    assert "known are LlamaForCausalLM" in await refused()
    changed("config.json", architectures=["LlamaForCausalLM"], num_hidden_layers=3)
    assert "no tensor 'model.layers.2." in await refused()
    changed("config.json", num_hidden_layers=2)
    (llama / "model-00002-of-00002.safetensors").rename(llama / "pytorch_model.bin")
    assert "incomplete" in await refused()
    for path in llama.glob("*.safetensors*"):
        path.unlink()
    assert "never are" in await refused()


async def test_files_are_named_once_and_by_name_alone(empty, llama):
    digest = put(empty, llama / "config.json")
    for names in (("../config.json", "a"), ("/etc/passwd", "a"), ("a", "a"), ("a/b/c.json", "b"), ("", "b")):
        with pytest.raises(InvalidParameter):
            files = tuple(NamedBlob(name, digest) for name in names)
            await empty.runner.submit_import(ImportSpec("m", files=files))
    missing = (NamedBlob("config.json", digest), NamedBlob("model.safetensors", "sha256:" + "a" * 64))
    with pytest.raises(BlobNotFound):
        await empty.runner.submit_import(ImportSpec("m", files=missing))
    with pytest.raises(InvalidParameter):
        await empty.runner.submit_import(ImportSpec("m", path=str(llama), convert_to="Q8_0"))


async def test_links_may_not_lead_out_of_the_folders_that_are_open(empty, llama, tmp_path):
    outside = tmp_path / "elsewhere" / "weights"
    outside.parent.mkdir()
    shard = llama / "model-00001-of-00002.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    bounded = ImportSpec("tiny", path=str(llama), within=(str(llama),))
    job = await empty.ended(await empty.runner.submit_import(bounded))
    assert (job.error.code, "link" in job.error.message) == ("invalid_model", True)
    wider = ImportSpec("tiny", path=str(llama), within=(str(llama), str(outside.parent)))
    assert (await empty.ended(await empty.runner.submit_import(wider))).error is None


async def test_a_conversion_can_be_cancelled_and_leaves_nothing(empty, tmp_path):
    folder = checkpoints.write(tmp_path / "big", "llama")
    rows = 1_000_000  # 1 GB of embedding; a file of holes
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    grow_embedding(folder / "model.safetensors", rows)
    job = await empty.runner.submit_import(ImportSpec("tiny", path=str(folder)))
    await empty.under_way(job, 0)
    await empty.runner.cancel(job.id)
    job = await empty.ended(job)
    assert (job.status, empty.names(), empty.incoming()) == (JobStatus.CANCELLED, [], [])


def grow_embedding(path: Path, rows: int) -> None:
    """Put an embedding of that many rows, of zeros, behind the other tensors."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    old = header.pop("model.embed_tokens.weight")
    header["old"] = old  # no tensor may leave a gap
    end = len(data) - 8 - length
    header["model.embed_tokens.weight"] = {
        "dtype": "F32",
        "shape": [rows, 256],
        "data_offsets": [end, end + rows * 1024],
    }
    header["model.rotary_emb.inv_freq"] = header.pop("old")
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data[8 + length :])
        file.truncate(8 + len(text) + end + rows * 1024)
