"""A store looked after: bytes that rot are found, set aside, never served, and mended; a second server stays out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.server import GLOSS, ROOT, MakeServer, Server, stocked, until

BODY = {"model": "gloss:Q8_0", "prompt": "It was", "temperature": 0, "max_tokens": 1}


def blob(server: Server, digest: str) -> Path:
    return server.home / "blobs" / digest.replace(":", "-")


def flip(path: Path, at: int = -1000) -> None:
    """One bit of the file becomes another, in place, as on a disk that rots."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(0o444)


def test_a_flipped_bit_is_scrubbed_out_and_a_rebuild_brings_the_tags_back(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    assert server.quantize("Q8_0")["status"] == "succeeded"
    server.json("POST", "/v1/models/copy", 201, {"source": "gloss:Q8_0", "destination": "gloss:prod"})
    digest = server.json("GET", "/v1/variants/gloss:Q8_0", 200)["digest"]
    server.json("POST", "/v1/generate", 200, BODY)
    flip(blob(server, digest))

    job = server.wait_for_job(server.json("POST", "/v1/verify", 202)["id"])
    assert (job["kind"], job["status"], job["result"]) == ("verify", "succeeded", [digest])
    assert not blob(server, digest).exists()
    assert (server.home / "blobs" / "quarantine" / digest.replace(":", "-")).exists()
    until(lambda: not server.workers())
    refused = server.json("POST", "/v1/generate", 409, BODY)["error"]
    assert refused["code"] == "blob_corrupt"
    assert "repair" in refused["message"].lower()
    server.json("POST", "/v1/generate", 409, {**BODY, "model": "gloss:prod"})
    assert server.json("GET", "/v1/variants/gloss:Q8_0", 200)["corrupt"]
    assert [tag["name"] for tag in server.json("GET", "/api/tags", 200)["models"]] == ["gloss:F16"]
    store = server.json("GET", "/v1/store", 200)
    assert (store["quarantined"], store["damaged"]) == (1, ["gloss:Q8_0"])

    rebuilt = server.wait_for_job(server.json("POST", "/v1/variants/gloss:Q8_0/repair", 202)["id"])
    assert (rebuilt["kind"], rebuilt["status"]) == ("rebuild", "succeeded"), rebuilt
    server.json("POST", "/v1/generate", 200, {**BODY, "model": "gloss:prod"})
    store = server.json("GET", "/v1/store", 200)
    assert (store["quarantined"], store["damaged"]) == (0, [])


def test_verify_with_repair_names_the_jobs_that_mend_and_says_what_only_its_owner_can(clean_server: Server) -> None:
    server = clean_server
    source = server.add_gloss()["digest"]
    server.quantize("Q8_0", "Q2_K")
    digests = {name: server.json("GET", f"/v1/variants/gloss:{name}", 200)["digest"] for name in ("Q8_0", "Q2_K")}
    flip(blob(server, digests["Q8_0"]))
    blob(server, digests["Q2_K"]).unlink()
    job = server.wait_for_job(server.json("POST", "/v1/verify", 202, {"models": ["gloss"], "repair": True})["id"])
    assert set(job["result"][:2]) == set(digests.values())
    for job_id in job["result"][2:]:
        assert server.wait_for_job(job_id)["status"] == "succeeded"
    assert len(job["result"]) == 4
    assert server.json("GET", "/v1/store", 200)["damaged"] == []

    blob(server, source).chmod(0o644)
    blob(server, source).write_bytes(b"")
    job = server.wait_for_job(server.json("POST", "/v1/verify", 202, {"models": ["gloss:F16"], "repair": True})["id"])
    assert job["result"] == [source]
    assert "import the same file again" in job["steps"][0]["detail"]
    assert server.json("POST", "/v1/variants/gloss:F16/repair", 409)["error"]["code"] == "blob_corrupt"
    sent = server.client.put(f"/v1/blobs/{source}", content=GLOSS.read_bytes())
    assert sent.status_code == 201
    server.json("POST", "/v1/generate", 200, {**BODY, "model": "gloss:F16"})


def test_a_model_whose_file_was_deleted_or_cut_by_hand_is_refused_before_it_is_loaded(clean_server: Server) -> None:
    server = clean_server
    digest = server.add_gloss()["digest"]
    whole = blob(server, digest).read_bytes()
    for damage in (b"", whole[:-100], None):
        if damage is None:
            blob(server, digest).unlink()
        else:
            blob(server, digest).chmod(0o644)
            blob(server, digest).write_bytes(damage)
        assert server.json("POST", "/v1/generate", 409, {**BODY, "model": "gloss"})["error"]["code"] == "blob_corrupt"
        assert server.json("GET", "/v1/store", 200)["damaged"] == ["gloss:F16"]
        assert server.client.put(f"/v1/blobs/{digest}", content=whole).status_code == 201
        server.json("POST", "/v1/generate", 200, {**BODY, "model": "gloss"})
        server.json("POST", "/v1/workers/gloss/unload", 200)


def test_what_was_not_read_for_long_is_read_in_the_background(
    make_server: MakeServer, gloss_home: Path, tmp_path: Path
) -> None:
    (rotten,) = (
        path for path in (stocked(tmp_path / "home", gloss_home) / "blobs").iterdir() if path.stat().st_size > 1 << 23
    )
    flip(rotten)
    again = make_server(QUANTRY_SCRUB_DAYS="0.000001")
    until(lambda: again.json("GET", "/v1/store", 200)["damaged"] == ["gloss:F16"])


def test_a_second_server_on_one_home_refuses_to_start(clean_server: Server) -> None:
    server = clean_server
    second = subprocess.run(
        [sys.executable, "-P", "-m", "service", "serve"],
        env={"PYTHONPATH": str(ROOT), "QUANTRY_HOME": str(server.home), "QUANTRY_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert second.stdout == ""
    problem, remedy = second.stderr.splitlines()  # and no stack trace
    assert "Another quantry server works on this home" in problem
    assert f"process {server.process.pid} at {server.url}" in remedy
    assert server.json("GET", "/v1/variants", 200)["data"] == []


def test_files_are_adopted_where_they_lie_and_never_touched(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(QUANTRY_BLOB_GRACE_SECONDS="0")
    mine = tmp_path / "mine"
    mine.mkdir()
    linked, referred = mine / "linked.gguf", mine / "referred.gguf"
    for path in (linked, referred):
        path.write_bytes(GLOSS.read_bytes())
        path.chmod(0o640)
    before = linked.stat()
    body = {"name": "linked", "path": str(linked), "adopt": "link"}
    digest = server.json("POST", "/v1/models", 201, body)["digest"]
    assert blob(server, digest).samefile(linked)
    after = linked.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    server.json("POST", "/v1/generate", 200, {**BODY, "model": "linked"})
    server.json("DELETE", "/v1/models/linked", 200)
    server.json("POST", "/v1/prune", 200, {"dry_run": False, "age_seconds": 60})
    assert linked.read_bytes() == GLOSS.read_bytes()
    server.stop()

    other = make_server("other")
    body = {"name": "referred", "path": str(referred), "adopt": "reference"}
    digest = other.json("POST", "/v1/models", 201, body)["digest"]
    assert not blob(other, digest).exists()
    store = other.json("GET", "/v1/store", 200)
    assert (store["outside"], store["outside_bytes"]) == (1, len(GLOSS.read_bytes()))
    other.stop()
    again = make_server("other")
    again.json("POST", "/v1/generate", 200, {**BODY, "model": "referred"})
    assert again.quantize("Q2_K", model="referred:F16")["status"] == "succeeded"
    again.json("POST", "/v1/workers/referred/unload", 200)
    moved = referred.rename(mine / "moved.gguf")
    error = again.json("POST", "/v1/generate", 409, {**BODY, "model": "referred:F16"})["error"]
    assert error["code"] == "blob_corrupt"
    assert str(mine) not in error["message"]
    moved.rename(referred)
    assert again.json("POST", "/v1/variants/referred:F16/verify", 200)["intact"]
    again.json("POST", "/v1/generate", 200, {**BODY, "model": "referred:F16"})
    again.json("DELETE", "/v1/models/referred", 200)
    assert referred.read_bytes() == GLOSS.read_bytes()


def test_what_can_be_made_again_is_pruned_and_what_is_needed_stays(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    assert server.quantize("Q8_0", "Q4_0", "Q2_K")["status"] == "succeeded"
    server.json("POST", "/v1/variants/gloss:Q4_0/pin", 200)
    server.json("POST", "/v1/generate", 200, {**BODY, "model": "gloss:Q2_K"})
    assert server.json("DELETE", "/v1/variants/gloss:Q4_0", 409)["error"]["code"] == "pinned"
    planned = server.json("POST", "/v1/prune", 200, {"unused_days": 0})
    assert [(one["kind"], one["name"]) for one in planned["data"]] == [("variant", "gloss:Q8_0")]
    assert planned["dry_run"] is True
    assert sorted(server.names()) == ["gloss:F16", "gloss:Q2_K", "gloss:Q4_0", "gloss:Q8_0"]
    done = server.json("POST", "/v1/prune", 200, {"unused_days": 0, "dry_run": False})
    assert done["data"] == planned["data"]
    assert sorted(server.names()) == ["gloss:F16", "gloss:Q2_K", "gloss:Q4_0"]
    server.json("DELETE", "/v1/variants/gloss:Q4_0/pin", 200)
    gone = server.json("DELETE", "/v1/variants/gloss:F16", 200)
    assert sorted(gone["orphaned"]) == ["gloss:Q2_K", "gloss:Q4_0"]


def test_a_quota_refuses_before_anything_is_written(make_gloss_server: MakeServer) -> None:
    size = GLOSS.stat().st_size
    server = make_gloss_server(QUANTRY_STORE_QUOTA_BYTES=str(size + size // 4))
    for refused in (
        server.json("POST", "/v1/quantize", 507, {"model": "gloss", "to": ["Q8_0"]}),
        server.client.put(f"/v1/blobs/sha256:{'0' * 64}", content=b"x" * (size // 2)).json(),
        server.client.put(f"/v1/blobs/sha256:{'0' * 64}", content=(b"x" * 65536 for _ in range(size // 65536))).json(),
    ):
        assert refused["error"]["code"] == "quota_exceeded", refused
    assert server.json("GET", "/v1/store", 200)["taken_bytes"] <= size + (1 << 20)
