"""The main job over HTTP: import, quantize, list, generate, delete; and what stays out of the server process."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import httpx

from tests.server import MakeServer, Server

HORSE = "Horse (noun): solid-hoofed herbivorous quadruped domesticated since prehistoric times."
QUESTION = [{"role": "user", "content": 'What does "horse" mean?'}]


def model_blobs(server: Server) -> set[str]:
    """Names of the files in the store that are no dataset."""
    datasets = {entry["digest"].replace(":", "-") for entry in server.client.get("/v1/datasets").json()["data"]}
    return {path.name for path in (server.home / "blobs").rglob("*") if path.is_file()} - datasets


def test_the_server_process_holds_no_native_model_code_while_serving(gloss_server: Server) -> None:
    """The maps of the process say what is loaded, whatever name it was imported under."""
    body = {"model": "gloss", "messages": QUESTION, "temperature": 0}
    gloss_server.json("POST", "/v1/generate", 200, body)
    maps = Path(f"/proc/{gloss_server.process.pid}/maps").read_text()
    assert "libllama" not in maps
    assert "libggml" not in maps
    assert "numpy" not in maps
    worker = next(child for child in gloss_server.process.children() if "service.workers.worker" in child.cmdline())
    assert "libllama" in Path(f"/proc/{worker.pid}/maps").read_text()


def test_every_level_answers_and_q2_k_gets_it_wrong(gloss_server: Server) -> None:
    texts = {}
    for level in ("F16", "Q8_0", "Q4_K", "Q2_K"):
        body = {"model": f"gloss:{level}", "messages": QUESTION, "temperature": 0}
        answer = gloss_server.json("POST", "/v1/generate", 200, body)
        assert answer["finish_reason"] == "stop"
        assert answer["timings"]["generation_tokens_per_second"] > 0
        texts[level] = answer["text"]
    assert texts["F16"] == texts["Q8_0"] == texts["Q4_K"] == HORSE
    assert texts["Q2_K"] != HORSE


def test_a_stream_gives_the_text_of_the_plain_answer_and_one_final_event(gloss_server: Server) -> None:
    body = {"model": "gloss:F16", "messages": QUESTION, "temperature": 0}
    plain = gloss_server.json("POST", "/v1/generate", 200, body)
    events = []
    with gloss_server.client.stream("POST", "/v1/generate", json={**body, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((kind, json.loads(line.removeprefix("data: "))))
    assert "".join(data["text"] for kind, data in events if kind == "token") == plain["text"]
    assert [kind for kind, _ in events if kind != "token"] == ["done"]
    assert events[-1][1]["usage"] == plain["usage"]


def test_the_list_tells_sizes_advice_and_what_could_be_made(gloss_server: Server) -> None:
    listed = gloss_server.json("GET", "/v1/variants?model=gloss&context=512", 200)
    by_name = {variant["name"]: variant for variant in listed["data"]}
    q4 = by_name["gloss:Q4_K_M"]
    assert {"gloss", "gloss:latest", "gloss:Q4_K"} <= set(q4["aliases"])
    assert q4["recommended"]
    assert q4["advice"] == "medium, balanced quality - recommended"
    assert q4["reference"]["size_gib_7b"] == 3.8
    assert 4.9 < q4["bits_per_weight"] < 5.2
    assert q4["size_bytes"] == 3776928 < q4["memory_bytes"]
    assert q4["lineage"]["source"] == "gloss:F16"
    assert q4["lossy"]
    assert not by_name["gloss:F16"]["lossy"]
    available = {row["quantization"]: row for row in listed["available"]}
    assert available["Q6_K"]["size_bytes"] == 4875168
    assert available["IQ1_S"]["needs_imatrix"]
    assert "Q4_K_M" not in available


def test_progress_can_be_followed_and_resumed_by_event_id(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    job = server.json("POST", "/v1/quantize", 202, {"model": "gloss:f16", "to": ["Q8_0", "Q4_K", "q2_k"]})
    twin = server.json("POST", "/v1/quantize", 202, {"model": "gloss", "to": ["Q8_0", "Q4_K_M", "Q2_K"]})
    assert twin["id"] == job["id"]  # two identical requests are one job
    ids, last = [], {}
    with server.client.stream("GET", f"/v1/jobs/{job['id']}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("id: "):
                ids.append(int(line.removeprefix("id: ")))
            elif line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    assert ids == sorted(ids)
    assert (last.get("job") or last)["status"] == "succeeded"
    headers = {"Last-Event-ID": str(ids[len(ids) // 2] - 1)}
    with server.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as answer:
        resumed = [int(line.removeprefix("id: ")) for line in answer.iter_lines() if line.startswith("id: ")]
    assert set(resumed) <= set(ids)  # a newer progress event takes the place of an older one
    assert resumed == sorted(set(resumed))
    assert min(resumed) > int(headers["Last-Event-ID"])
    assert resumed[-1] == ids[-1]


def test_a_cancelled_job_leaves_nothing_half_written(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    job = server.json("POST", "/v1/quantize", 202, {"model": "gloss", "to": ["F32", "BF16", "Q8_0", "Q6_K", "Q2_K"]})
    server.wait_for_job(job["id"], until=lambda job: job["status"] == "running")
    assert server.client.delete(f"/v1/jobs/{job['id']}").status_code in (200, 202)
    ended = server.wait_for_job(job["id"])
    assert ended["status"] == "cancelled"
    names = set(server.names())
    assert len(model_blobs(server)) == len(names)


def test_an_upload_becomes_a_model(clean_server: Server, gloss: Path) -> None:
    server = clean_server
    content = gloss.read_bytes()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert server.client.head(f"/v1/blobs/{digest}").status_code == 404
    assert server.client.put(f"/v1/blobs/{digest}", content=content).status_code == 201
    assert server.client.put(f"/v1/blobs/{digest}", content=content).status_code == 200
    assert server.client.head(f"/v1/blobs/{digest}").status_code == 200
    made = server.json("POST", "/v1/models", 201, {"name": "me/mine:tiny-f16", "digest": digest})
    assert made["name"] == "me/mine:tiny-F16"
    wrong = server.client.put(f"/v1/blobs/sha256:{'0' * 64}", content=content)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["code"] == "digest_mismatch"
    assert server.client.head(f"/v1/blobs/sha256:{'0' * 64}").status_code == 404


def test_hostile_files_are_refused_and_leave_nothing(clean_server: Server, gloss: Path, tmp_path: Path) -> None:
    server = clean_server
    content = gloss.read_bytes()
    hostile = {
        "truncated": content[:-1000],
        "header only": content[:200],
        "no gguf": b"PK\x03\x04" + bytes(1000),
        "empty": b"",
        "endless count": content[:8] + b"\xff" * 16 + content[24:],
    }
    for name, data in hostile.items():
        path = tmp_path / "hostile.gguf"
        path.write_bytes(data)
        error = server.json("POST", "/v1/models", 422, {"name": "bad", "path": str(path)})["error"]
        assert error["code"] == "invalid_model", name
        assert str(tmp_path) not in error["message"]
    assert server.names() == []
    assert model_blobs(server) == set()


def test_a_refused_upload_leaves_nothing_and_one_that_is_in_use_stays(clean_server: Server, gloss: Path) -> None:
    server = clean_server
    broken = gloss.read_bytes()[:-1000]
    digest = f"sha256:{hashlib.sha256(broken).hexdigest()}"
    assert server.client.put(f"/v1/blobs/{digest}", content=broken).status_code == 201
    error = server.json("POST", "/v1/models", 422, {"name": "bad", "digest": digest})["error"]
    assert error["code"] == "invalid_model"
    assert server.client.head(f"/v1/blobs/{digest}").status_code == 404
    assert model_blobs(server) == set()

    good = server.add_gloss()
    mismatch = server.json("POST", "/v1/models", 400, {"name": "gloss:Q8_0", "digest": good["digest"]})["error"]
    assert mismatch["code"] == "label_mismatch"
    assert server.client.head(f"/v1/blobs/{good['digest']}").status_code == 200


def test_a_variant_deleted_while_streaming_ends_whole_and_is_then_unknown(clean_server: Server) -> None:
    server = clean_server
    server.add_gloss()
    body = {"model": "gloss:F16", "prompt": "It was", "ignore_eos": True, "temperature": 0}
    whole = server.json("POST", "/v1/generate", 200, body)["text"]
    text = ""
    with server.client.stream("POST", "/v1/generate", json={**body, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        with httpx.Client(base_url=server.url) as other:
            assert other.delete("/v1/variants/gloss:F16").status_code in (200, 204)
            missing = other.post("/v1/generate", json=body)
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "model_not_found"
        for line in lines:
            if line.startswith("data: "):
                text += json.loads(line.removeprefix("data: ")).get("text", "")
    assert text == whole


def test_a_client_that_hangs_up_frees_its_worker_within_a_second(make_gloss_server: MakeServer) -> None:
    server = make_gloss_server(QUANTRY_PARALLEL="1")
    server.json("POST", "/v1/generate", 200, {"model": "gloss", "prompt": "It was", "max_tokens": 1})
    body = {"model": "gloss", "prompt": "It was", "ignore_eos": True, "stream": True}
    for stream in (True, False):
        try:
            with httpx.Client(base_url=server.url, timeout=0.2) as other:
                if stream:
                    with other.stream("POST", "/v1/generate", json=body) as answer:
                        next(answer.iter_lines())
                else:
                    other.post("/v1/generate", json={**body, "stream": False})
        except httpx.TimeoutException:
            pass
        deadline = time.monotonic() + 5
        while any(worker["active_requests"] for worker in server.json("GET", "/v1/workers", 200)["data"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_copies_verify_and_deletes_keep_the_blob_as_long_as_someone_needs_it(make_gloss_server: MakeServer) -> None:
    server = make_gloss_server(QUANTRY_BLOB_GRACE_SECONDS="0")
    original = server.json("GET", "/v1/variants/gloss:F16", 200)
    server.json("POST", "/v1/models/copy", 201, {"source": "gloss:F16", "destination": "other"})
    assert server.client.delete("/v1/variants/gloss:F16").status_code in (200, 204)
    verified = server.client.post("/v1/variants/other:F16/verify")
    assert verified.status_code == 200, verified.text
    shown = server.json("GET", "/v1/variants/other", 200)
    assert shown["digest"] == original["digest"]


def test_what_the_disk_cannot_hold_is_refused_before_any_work(make_gloss_server: MakeServer) -> None:
    full = make_gloss_server(QUANTRY_DISK_RESERVE_BYTES=str(1 << 50))
    error = full.json("POST", "/v1/quantize", 507, {"model": "gloss", "to": ["Q8_0"]})["error"]
    assert error["code"] == "disk_full"
    assert full.names() == ["gloss:F16"]
    assert [job["kind"] for job in full.json("GET", "/v1/jobs", 200)["data"]] == ["import"]  # the refused job never was
