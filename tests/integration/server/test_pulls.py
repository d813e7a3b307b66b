"""Pulls through a real server, from a hub, a registry and a file server on this machine, to a model that answers."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests import checkpoints
from tests.old_files import contents, write_split
from tests.remote_hub import COMMIT, FakeHub, Fault
from tests.server import GLOSS, Server, until

DATA = GLOSS.read_bytes()
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
FILE = "gloss-F16.gguf"
TOKEN = "hf_canary-that-nobody-may-see-0123456789"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def clean(hub: FakeHub) -> None:
    for name in ("repos", "files", "manifests", "blobs", "lies", "faults", "always"):
        getattr(hub, name).clear()
    hub.gated.clear()
    hub.requests.clear()
    hub.slow_seconds, hub.realm = 0.0, ""
    hub.add("o/r", {"README.md": b"words", "config.json": b"{}", f"F16/{FILE}": DATA})


@pytest.fixture(scope="module")
def server(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {**hub.settings, "QUANTRY_HUB_TOKEN": TOKEN, "QUANTRY_PULL_STALL_SECONDS": "2"}
    server = Server(tmp_path_factory.mktemp("pulls") / "home", settings).start()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def empty(server: Server) -> Iterator[None]:
    yield
    for name in {row["model"] for row in server.json("GET", "/v1/variants", 200)["data"]}:
        server.client.delete(f"/v1/models/{name}")


@pytest.fixture(autouse=True)
def nothing_stored(server: Server) -> None:
    """As the sweep would, after the grace period."""
    (server.home / "blobs" / DIGEST.replace(":", "-")).unlink(missing_ok=True)


def blobs(server: Server) -> set[str]:
    return {path.name for path in (server.home / "blobs").glob("sha256-*")}


def test_a_model_of_the_hub_is_pulled_and_answers(server: Server, hub: FakeHub) -> None:
    variant = server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r:f16"})
    assert (variant["name"], variant["digest"]) == ("hf.co/o/r:F16", DIGEST)
    assert variant["lineage"]["origin"] == "pulled"
    assert hub.sent(FILE) == len(DATA), "each byte comes once"
    assert not any((server.home / "blobs" / "partial").iterdir())
    answer = server.json("POST", "/v1/generate", 200, {"model": "hf.co/o/r:F16", "prompt": "It", "max_tokens": 1})
    assert answer["usage"]["completion_tokens"] == 1


def test_what_is_stored_already_does_not_come_again(server: Server, hub: FakeHub) -> None:
    server.add_gloss()
    variant = server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r", "name": "words"})
    assert (variant["name"], hub.sent(FILE)) == ("words:F16", 0)


def test_a_look_shows_levels_and_sizes_and_fetches_nothing(server: Server, hub: FakeHub) -> None:
    pieces = {f"m-Q8_0-0000{number}-of-00002.gguf": b"x" for number in (1, 2)}
    hub.add("o/many", {"m-Q4_K_M.gguf": b"x" * 10, **pieces, "mmproj-m-F16.gguf": b"z", FILE: DATA})
    server.add_gloss()
    seen = server.json("GET", "/v1/remote/hf.co/o/many", 200)
    assert (seen["address"], seen["revision"], seen["choice"]) == ("hf.co/o/many", COMMIT, "Q4_K_M")
    levels = {level["level"]: level for level in seen["levels"]}
    assert set(levels) == {"Q4_K_M", "Q8_0", "F16"}
    assert levels["F16"]["size_bytes"] == len(DATA)
    assert levels["F16"]["stored"] == ["gloss:F16"]
    assert levels["Q8_0"]["address"] == "hf.co/o/many:Q8_0"
    assert [file["name"] for file in levels["Q8_0"]["files"]] == [
        "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf",
    ]  # fmt: skip
    assert [level["level"] for level in seen["levels"] if level["recommended"]] == ["Q4_K_M"]
    assert hub.sent(".gguf") == 0


@pytest.mark.parametrize(
    ("address", "status", "code"),
    [
        ("hf.co/o/r:Q4_K_M", 404, "model_not_found"),
        ("hf.co/o/nothing", 404, "model_not_found"),
        ("hf.co/o/r@nowhere", 404, "model_not_found"),
        ("https://169.254.169.254/x.gguf", 403, "forbidden"),
        ("http://2130706433/x.gguf", 403, "forbidden"),
        ("https://example.org/x.gguf", 403, "forbidden"),
        ("https://hf.co.example.org/x.gguf", 403, "forbidden"),
        ("file:///etc/passwd", 400, "invalid_parameter"),
        ("hf.co/o", 400, "invalid_parameter"),
        ("https://u:p@hf.co/x.gguf", 400, "invalid_parameter"),
    ],
)
def test_what_cannot_be_pulled_is_refused_with_its_reason(server: Server, address: str, status: int, code: str) -> None:
    assert server.json("GET", f"/v1/remote/{address}", status)["error"]["code"] == code
    assert server.json("POST", "/v1/models", status, {"from": address, "name": "m"})["error"]["code"] == code


def test_a_gated_repository_opens_with_the_servers_token_and_nothing_shows_it(server: Server, hub: FakeHub) -> None:
    hub.gated.add("o/r")
    hub.token = "another"
    refused = server.json("POST", "/v1/models", 502, {"from": "hf.co/o/r"})
    assert refused["error"]["code"] == "remote_refused"
    hub.token = TOKEN
    with FakeHub() as other:
        hub.elsewhere = other.url
        other.add("o/r", hub.repos["o/r"])
        hub.always[FILE] = Fault.ELSEWHERE
        assert server.json("POST", "/v1/models", 403, {"from": "hf.co/o/r"})["error"]["code"] == "forbidden"
        assert not other.requests, "what is not listed is not even connected to"
    hub.always.clear()
    server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r"})
    for path in server.home.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    for job in server.json("GET", "/v1/jobs", 200)["data"]:
        assert TOKEN not in json.dumps(job)
    for process in server.process.children(recursive=True):
        assert TOKEN not in " ".join(process.cmdline())
        assert TOKEN not in json.dumps(process.environ())


@pytest.mark.parametrize(("fault", "code"), [(Fault.WRONG, "digest_mismatch"), (Fault.PRIVATE, "forbidden")])
def test_a_bad_file_fails_the_pull_and_is_not_stored(server: Server, hub: FakeHub, fault: Fault, code: str) -> None:
    before = blobs(server)
    hub.always[FILE] = fault
    answer = server.client.post("/v1/models", json={"from": "hf.co/o/r"})
    assert answer.json()["error"]["code"] == code, answer.text
    assert str(server.home) not in answer.text
    assert blobs(server) == before


def test_a_file_that_is_no_model_is_refused(server: Server, hub: FakeHub) -> None:
    bad = b"GGUF" + b"\0" * 1000
    hub.add("o/bad", {"x-F16.gguf": bad})
    assert server.json("POST", "/v1/models", 422, {"from": "hf.co/o/bad"})["error"]["code"] == "invalid_model"
    assert not any((server.home / "blobs" / "partial").iterdir()), "it would be none the next time either"
    assert server.json("POST", "/v1/models", 400, {"from": "hf.co/o/r", "name": "m:Q8_0"})["error"]["code"] == (
        "label_mismatch"
    )
    refused = server.json("POST", "/v1/models", 400, {"from": "hf.co/o/r", "name": "m", "convert_to": "F32"})
    assert "quantize it to F32" in refused["error"]["message"]


def test_a_plain_file_and_a_registry_are_sources_as_well(server: Server, hub: FakeHub) -> None:
    hub.files[f"/models/{FILE}"] = DATA
    variant = server.json("POST", "/v1/models", 201, {"from": f"{hub.url}/models/{FILE}"})
    assert (variant["name"], hub.sent(FILE)) == ("gloss:F16", len(DATA) + 1), "one byte to learn the size"
    hub.add_model("library/gloss:5m-instruct-f16", DATA)
    variant = server.json("POST", "/v1/models", 201, {"from": "gloss:5m-instruct-f16"})
    assert variant["name"] == "gloss:5m-instruct-F16"
    assert hub.sent(DIGEST) == 0, "that blob is stored"
    hub.realm = "http://169.254.169.254/token"
    refused = server.client.post("/v1/models", json={"from": "gloss:5m-instruct-f16", "name": "x"})
    assert refused.json()["error"]["code"] == "forbidden"


def test_a_registry_that_lies_about_its_digests_is_not_believed(server: Server, hub: FakeHub) -> None:
    hub.lies["library/evil:latest"] = "sha256:../../../../etc/passwd"
    hub.add_model("library/evil:latest", DATA)
    assert server.json("POST", "/v1/models", 502, {"from": "evil"})["error"]["code"] == "remote_failed"


def test_a_damaged_blob_is_mended_by_pulling_it_again(server: Server, hub: FakeHub) -> None:
    variant = server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r", "name": "rotten"})
    remote = variant["lineage"]["remote"]
    assert remote == {"address": "hf.co/o/r:F16", "revision": COMMIT, "files": [f"F16/{FILE}"]}
    path = server.home / "blobs" / DIGEST.replace(":", "-")
    path.chmod(0o644)
    path.write_bytes(DATA[:-1] + b"x")
    assert server.json("POST", "/v1/variants/rotten:F16/verify", 200)["intact"] is False
    hub.requests.clear()
    again = {"from": f"{remote['address']}@{remote['revision']}", "name": "rotten:F16"}
    assert server.json("POST", "/v1/models", 201, again)["corrupt"] is False
    assert hub.sent(FILE) == len(DATA)
    assert path.read_bytes() == DATA
    assert server.json("POST", "/v1/variants/rotten:F16/verify", 200)["intact"] is True


def test_a_repair_fetches_what_was_pulled_from_where_it_came(server: Server, hub: FakeHub) -> None:
    server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r", "name": "rotten"})
    server.json("POST", "/v1/models/copy", 201, {"source": "rotten:F16", "destination": "rotten:prod"})
    path = server.home / "blobs" / DIGEST.replace(":", "-")
    path.unlink()
    hub.requests.clear()
    checked = server.wait_for_job(server.json("POST", "/v1/verify", 202, {"models": ["rotten"], "repair": True})["id"])
    digest, repairing = checked["result"]
    assert digest == DIGEST
    assert server.wait_for_job(repairing)["status"] == "succeeded"
    assert (hub.sent(FILE), path.read_bytes() == DATA) == (len(DATA), True)
    assert server.json("GET", "/v1/variants/rotten:prod", 200)["corrupt"] is False


def test_the_pieces_of_a_split_model_are_all_fetched_and_joined(server: Server, hub: FakeHub, tmp_path: Path) -> None:
    pieces = write_split(GLOSS, tmp_path / "pieces", "gloss-F16", most_tensors=30)
    assert len(pieces) > 1
    hub.add("o/split", {f"F16/{piece.name}": piece.read_bytes() for piece in pieces})
    variant = server.json("POST", "/v1/models", 201, {"from": "hf.co/o/split:F16"})
    assert variant["lineage"]["remote"]["files"] == [f"F16/{piece.name}" for piece in pieces]
    joined = server.home / "blobs" / variant["digest"].replace(":", "-")
    assert contents(joined)[1] == contents(GLOSS)[1]


def test_a_registry_that_gives_a_token_to_everybody_is_asked_for_it(server: Server, hub: FakeHub) -> None:
    hub.add_model("library/gloss:f16", DATA)
    hub.realm = f"{hub.url}/token"
    assert server.json("POST", "/v1/models", 201, {"from": "gloss:f16"})["name"] == "gloss:F16"


def test_a_checkpoint_of_the_hub_is_fetched_whole_and_converted(server: Server, hub: FakeHub, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "tiny", "llama")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.add("o/tiny", {**files, "pytorch_model.bin": b"pickled", "run.py": b"import os"})
    (level,) = server.json("GET", "/v1/remote/hf.co/o/tiny", 200)["levels"]
    assert (level["level"], level["converts"]) == ("F16", True)
    variant = server.json("POST", "/v1/models", 201, {"from": "hf.co/o/tiny"})
    assert variant["name"] == "hf.co/o/tiny:F16"
    assert variant["lineage"]["converted_from"]
    fetched = {seen.path.rpartition("/")[2] for seen in hub.requests if "/resolve/" in seen.path}
    assert "config.json" in fetched
    assert not fetched & {"pytorch_model.bin", "run.py"}
    answer = server.json("POST", "/v1/generate", 200, {"model": variant["name"], "prompt": "a", "max_tokens": 1})
    assert answer["usage"]["completion_tokens"] == 1


def test_ollamas_client_pulls(server: Server, hub: FakeHub) -> None:
    with ollama.Client(host=server.url) as client:
        pulled_by(client)


def pulled_by(client: ollama.Client) -> None:
    parts = list(client.pull("hf.co/o/r:F16", stream=True))
    assert (parts[0].status, parts[-1].status) == ("pulling manifest", "success")
    layers = [part for part in parts if part.digest]
    assert {part.digest for part in layers} == {DIGEST}
    assert layers[-1].completed == layers[-1].total == len(DATA)
    assert "verifying sha256 digest" in [part.status for part in parts]
    assert client.generate("hf.co/o/r:F16", "It", raw=True, options={"num_predict": 1}).eval_count == 1
    with pytest.raises(ollama.ResponseError, match="has no"):
        list(client.pull("hf.co/o/r:Q8_0", stream=True))
    with pytest.raises(ollama.ResponseError, match="has no"):
        client.pull("hf.co/o/r:Q8_0")


def test_a_client_that_leaves_cancels_its_pull_unless_another_waits_for_it(server: Server, hub: FakeHub) -> None:
    hub.slow_seconds = 0.05
    body = {"model": "hf.co/o/r:F16"}
    with httpx.stream("POST", f"{server.url}/api/pull", json=body, timeout=60) as first:
        firsts = first.iter_lines()  # kept: httpx hangs up when its lines are forgotten
        assert any("digest" in line for line in firsts)
        with httpx.stream("POST", f"{server.url}/api/pull", json=body, timeout=60) as second:
            lines = second.iter_lines()
            assert any("digest" in line for line in lines)
            first.close()
            hub.slow_seconds = 0.0
            assert json.loads(list(lines)[-1]) == {"status": "success"}
    hub.slow_seconds = 0.1
    hub.add("o/alone", {FILE: DATA[:-1] + b"x"})
    with httpx.stream("POST", f"{server.url}/api/pull", json={"model": "hf.co/o/alone"}, timeout=60) as alone:
        assert any("digest" in line for line in alone.iter_lines())
    (job,) = [job for job in server.json("GET", "/v1/jobs", 200)["data"] if job["model"].startswith("hf.co/o/alone")]
    assert server.wait_for_job(job["id"])["status"] == "cancelled"


def noted(server: Server) -> int:
    """Bytes of pulls under way that will not come again, whatever happens: they are noted each second."""
    noted = 0
    for path in (server.home / "blobs" / "partial").rglob("*.ranges"):
        with suppress(OSError, ValueError):  # it is being replaced
            noted += sum(end - start for start, end in json.loads(path.read_bytes())["done"])
    return noted


def begun(server: Server, name: str, address: str = "hf.co/o/r") -> Any:
    """Ask for a pull, without waiting for its end."""
    found: list[Any] = []

    def ask() -> None:
        with suppress(httpx.TransportError):  # the server was killed
            httpx.post(f"{server.url}/v1/models", json={"from": address, "name": name}, timeout=60)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not found:
        assert time.monotonic() < deadline
        found = [job for job in server.json("GET", "/v1/jobs", 200)["data"] if job["model"] == name]
        time.sleep(0.02)
    return found[0]


def test_two_names_for_one_address_are_one_transfer(server: Server, hub: FakeHub) -> None:
    hub.slow_seconds = 0.005
    first, second = begun(server, "one"), begun(server, "two")
    ended = [server.wait_for_job(job["id"]) for job in (first, second)]
    assert [job["status"] for job in ended] == ["succeeded", "succeeded"]
    assert hub.sent(FILE) == len(DATA)
    assert {"one:F16", "two:F16"} <= set(server.names())


def test_every_spelling_of_one_file_is_one_transfer(server: Server, hub: FakeHub) -> None:
    hub.slow_seconds = 0.02
    hub.add_model("library/gloss:f16", DATA)
    jobs = [
        begun(server, name, address)
        for name, address in (
            ("bare", "hf.co/o/r"),
            ("pinned", f"huggingface.co/o/r:f16@{COMMIT}"),
            ("page", f"https://huggingface.co/o/r/resolve/main/F16/{FILE}"),
            ("elsewhere", "gloss:f16"),
        )
    ]
    assert [server.wait_for_job(job["id"])["status"] for job in jobs] == ["succeeded"] * 4
    assert hub.sent(FILE) + hub.sent(DIGEST) == len(DATA)
    assert not any((server.home / "blobs" / "partial").iterdir())


def test_a_checkpoint_that_two_ask_for_comes_once(server: Server, hub: FakeHub, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "tiny", "llama")
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.add("o/tiny", files)
    hub.slow_seconds = 0.05
    jobs = [
        begun(server, name, address)
        for name, address in (("one", "hf.co/o/tiny"), ("two", f"hf.co/o/tiny@{COMMIT}"), ("three", "hf.co/o/tiny"))
    ]
    assert [server.wait_for_job(job["id"])["status"] for job in jobs] == ["succeeded"] * 3
    assert hub.sent("model.safetensors") == len(files["model.safetensors"])
    assert not any((server.home / "blobs" / "partial").iterdir())


def test_a_cancelled_pull_goes_on_where_it_was(server: Server, hub: FakeHub) -> None:
    hub.slow_seconds = 0.08
    job = begun(server, "later")
    until(lambda: noted(server) > 0.2 * len(DATA))
    assert server.json("DELETE", f"/v1/jobs/{job['id']}", 200)["status"] == "cancelled"
    came = hub.sent(FILE)
    assert len(DATA) * 0.2 < came < len(DATA)
    hub.slow_seconds = 0.0
    server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r", "name": "later"})
    assert hub.sent(FILE) - came < len(DATA) - 0.2 * len(DATA)


def test_a_killed_server_goes_on_with_its_pull(server: Server, hub: FakeHub) -> None:
    hub.slow_seconds = 0.05
    job = begun(server, "crashed")
    until(lambda: noted(server) > 0.5 * len(DATA))
    server.kill()
    came = hub.sent(FILE)
    hub.slow_seconds = 0.0
    server.start()
    ended = server.wait_for_job(job["id"])
    assert (ended["status"], ended["result"]) == ("succeeded", ["crashed:F16"])
    assert hub.sent(FILE) - came < 0.5 * len(DATA)
    assert not any((server.home / "blobs" / "partial").iterdir())


def test_a_pull_waits_for_no_other_job(server: Server, hub: FakeHub) -> None:
    server.add_gloss()
    long = server.client.post("/v1/evaluate", json={"model": "gloss"})
    assert long.status_code == 202, long.text
    server.wait_for_job(long.json()["id"], lambda job: job["status"] == "running")
    server.json("POST", "/v1/models", 201, {"from": "hf.co/o/r", "name": "beside"})
    assert server.json("GET", f"/v1/jobs/{long.json()['id']}", 200)["status"] == "running"
    server.json("DELETE", f"/v1/jobs/{long.json()['id']}", 200)
