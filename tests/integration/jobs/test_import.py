"""Imports with the real store and the real llama.cpp: what comes in is whole, planned and checked, or is not in."""

from __future__ import annotations

import hashlib
import os
import resource
import struct

import pytest

from service.domain.errors import BlobNotFound, DiskFull, InvalidName, InvalidParameter
from service.domain.jobs import ImportSpec, JobStatus
from service.domain.quants import QUANTIZATIONS


async def test_a_file_becomes_a_variant_with_a_plan_for_every_level(empty, gloss):
    variant = await empty.imported(name="Gloss")
    assert (variant.name, variant.facts.quantization, variant.lineage.origin) == ("Gloss:F16", "F16", "imported")
    assert variant.digest == f"sha256:{hashlib.sha256(gloss.read_bytes()).hexdigest()}"
    assert empty.blobs.verify(variant.digest)
    assert [plan.quantization for plan in empty.catalog.plans(variant.digest)] == list(QUANTIZATIONS)
    assert empty.incoming() == []


async def test_an_upload_is_used_in_place(empty, gloss):
    data = gloss.read_bytes()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with empty.blobs.open_upload(digest, len(data)) as upload:
        upload.write(data)
        upload.finish()
    place = empty.blobs.path(digest).stat().st_ino
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("gloss", digest=digest)))
    assert (job.status, job.result) == (JobStatus.SUCCEEDED, ("gloss:F16",))
    assert [step.name for step in job.steps] == ["check", "plan", "load"]
    assert empty.blobs.path(digest).stat().st_ino == place


async def test_the_same_file_twice_is_one_variant_and_under_two_names_one_blob(empty):
    first = await empty.imported()
    assert await empty.imported() == first
    other = await empty.imported(name="other")
    assert other.digest == first.digest
    assert len(empty.catalog.blobs()) == 1


async def test_a_name_that_stands_for_another_file_keeps_it(empty, gloss, tmp_path):
    first = await empty.imported()
    data = bytearray(gloss.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("gloss", path=str(path))))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "name_taken")
    assert empty.catalog.variants() == [first]
    assert len(empty.blobs.sweep(empty.catalog.referenced_digests(), 0.0)) == 1, "its bytes go with the next sweep"
    assert empty.blobs.total_bytes() == first.size_bytes


def hostile_files(data: bytes) -> dict[str, bytes]:
    count = struct.unpack_from("<Q", data, 16)[0]
    return {
        "truncated": data[: len(data) // 2],
        "header only": data[:4096],
        "empty": b"",
        "no gguf": b"PK\x03\x04" + data[4:],
        "more pairs than bytes": data[:16] + struct.pack("<Q", 2**63) + data[24:],
        "one pair too few": data[:16] + struct.pack("<Q", count - 1) + data[24:],
        "another architecture": data.replace(struct.pack("<Q", 5) + b"llama", struct.pack("<Q", 5) + b"lmama"),
        "weights that are no numbers": data[: len(data) - 400_000] + b"\xff\x7f" * 200_000,
    }


@pytest.mark.parametrize("kind", hostile_files(b"\1" * 64))
async def test_a_bad_file_is_refused_and_leaves_nothing(empty, gloss, tmp_path, kind):
    path = tmp_path / "bad.gguf"
    path.write_bytes(hostile_files(gloss.read_bytes())[kind])
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("bad", path=str(path))))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "invalid_model")
    assert str(tmp_path) not in job.error.message
    assert (empty.names(), empty.catalog.blobs(), empty.incoming()) == ([], [], [])
    assert empty.blobs.total_bytes() == 0


async def test_a_label_in_the_name_must_be_the_files_own(empty, gloss):
    job = await empty.ended(await empty.runner.submit_import(ImportSpec("gloss:q8_0", path=str(gloss))))
    assert job.error.code == "label_mismatch"
    assert (empty.names(), empty.incoming(), empty.blobs.total_bytes()) == ([], [], 0)


async def test_what_is_no_readable_file_is_refused_at_once_without_its_place(empty, tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "absent.gguf", tmp_path / "pipe.gguf", "relative.gguf", "/nul\0byte"):
        with pytest.raises(InvalidParameter) as refused:
            await empty.runner.submit_import(ImportSpec("m", path=str(path)))
        assert str(tmp_path.parent) not in refused.value.message


async def test_a_request_must_name_one_file_and_one_model(empty, gloss):
    with pytest.raises(InvalidParameter):
        await empty.runner.submit_import(ImportSpec("m"))
    with pytest.raises(InvalidParameter):
        await empty.runner.submit_import(ImportSpec("m", path=str(gloss), digest="sha256:" + "a" * 64))
    with pytest.raises(InvalidName):
        await empty.runner.submit_import(ImportSpec("a/b/c/d", path=str(gloss)))
    with pytest.raises(BlobNotFound):
        await empty.runner.submit_import(ImportSpec("m", digest="sha256:" + "a" * 64))


async def test_a_file_that_vanishes_before_its_turn_is_reported(open_home, script, gloss, tmp_path):
    path = tmp_path / "gone.gguf"
    path.write_bytes(gloss.read_bytes())
    home = open_home()
    job = await home.runner.submit_import(ImportSpec("gone", path=str(path)))
    path.unlink()
    await home.runner.start()
    ended = await home.ended(job)
    assert ended.error.code == "invalid_parameter"
    assert str(tmp_path) not in ended.error.message
    await home.runner.stop()


async def test_a_file_that_does_not_fit_is_refused_before_it_is_copied(empty, gloss):
    empty.blobs.reserve_bytes = 2**60
    with pytest.raises(DiskFull, match="free"):
        await empty.runner.submit_import(ImportSpec("gloss", path=str(gloss)))


async def test_a_copy_that_cannot_be_written_is_a_full_disk(open_home, script, gloss):
    limits = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (2**20, 2**20)); GO"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    home = open_home(copy=False, argv=script(limits))
    await home.runner.start()
    job = await home.ended(await home.runner.submit_import(ImportSpec("gloss", path=str(gloss))))
    assert (job.status, job.error.code) == (JobStatus.FAILED, "disk_full")
    assert (home.incoming(), home.names()) == ([], [])
    await home.runner.stop()


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS"])
async def test_a_crash_of_the_child_is_the_files_fault_and_the_next_import_works(
    open_home, script, gloss, tmp_path, name
):
    # The first run crashes as llama.cpp would; the second is the real one.
    marker = str(tmp_path / "crashed-once")
    text = (
        "import os, signal, sys\n"
        f"if not os.path.exists({marker!r}):\n"
        f"    open({marker!r}, 'w').close()\n"
        "    sys.stderr.write('/src/llama-vocab.cpp:7: GGML_ASSERT(n > 0) failed\\n')\n"
        f"    os.kill(os.getpid(), signal.{name})\n"
        "GO"
    )
    home = open_home(copy=False, argv=script(text))
    await home.runner.start()
    job = await home.ended(await home.runner.submit_import(ImportSpec("gloss", path=str(gloss))))
    assert job.error.code == "invalid_model"
    assert f"llama.cpp crashed reading it: {name}, GGML_ASSERT(n > 0) failed" in job.error.message
    assert "/src" not in job.error.message
    assert home.incoming() == []
    assert (await home.imported()).name == "gloss:F16"
    await home.runner.stop()


async def test_a_child_that_breaks_the_protocol_is_ended(open_home, script, gloss, job_children):
    garbage = "import os, time; os.write(1, b'\\x00\\x00\\x00\\x03abc'); time.sleep(60)"
    home = open_home(copy=False, argv=script(garbage))
    await home.runner.start()
    job = await home.ended(await home.runner.submit_import(ImportSpec("gloss", path=str(gloss))))
    assert job.error.code == "job_child_died"
    assert not job_children()
    await home.runner.stop()


async def test_a_child_that_hangs_is_ended(open_home, script, gloss):
    home = open_home(copy=False, argv=script("import time; time.sleep(60)"), stall_seconds=0.5)
    await home.runner.start()
    job = await home.ended(await home.runner.submit_import(ImportSpec("gloss", path=str(gloss))))
    assert job.error.code == "job_child_died"
    await home.runner.stop()


async def test_the_child_sees_no_secret_and_runs_in_the_background(open_home, script, gloss, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("QUANTRY_API_KEYS", "canary")
    told = tmp_path / "told"
    text = (
        "import atexit, os, resource\n"
        f"def tell(): open({str(told)!r}, 'w').write(f'{{dict(os.environ)}} nice={{os.nice(0)}} "
        "core={resource.getrlimit(resource.RLIMIT_CORE)} own={os.getpid() == os.getsid(0)}')\n"
        "atexit.register(tell)\nGO"
    )
    home = open_home(copy=False, argv=script(text), niceness=19)
    await home.runner.start()
    await home.imported()
    await home.runner.stop()
    seen = told.read_text()
    assert "canary" not in seen
    assert "nice=19" in seen
    assert "core=(0, " in seen
    assert "own=True" in seen
