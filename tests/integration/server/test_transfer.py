"""Files in and out of a real server: uploads that survive its death, downloads in ranges, models from home to home."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import uploading
from service.cli.program import build
from tests import tiny_models
from tests.server import GLOSS, Server, stocked, until

CONTENT = random.Random(61).randbytes(6 << 20)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
BLOB = f"/v1/blobs/{DIGEST}"
STALL_SECONDS = 0.6
IMATRIX = (Path(__file__).parents[1] / "quantization" / "llama-imatrix-gloss.gguf").read_bytes()
LEVELS = ("F16", "Q8_0", "Q4_K_M")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, gloss_home: Path) -> Iterator[Server]:
    """gloss at three levels, with two tags."""
    settings = {"QUANTRY_STREAM_STALL_SECONDS": str(STALL_SECONDS)}
    server = Server(stocked(tmp_path_factory.mktemp("transfer") / "home", gloss_home), settings).start()
    server.quantize("Q8_0", "Q4_K_M")
    for tag, level in (("prod", "Q8_0"), ("latest", "Q4_K_M")):
        server.json("POST", "/v1/models/copy", 201, {"source": f"gloss:{level}", "destination": f"gloss:{tag}"})
    yield server
    server.close()


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second home."""
    server = Server(tmp_path_factory.mktemp("transfer-to") / "home", {}).start()
    yield server
    server.close()


@pytest.fixture
def other(another: Server) -> Iterator[Server]:
    """It, without a model."""
    yield another
    for model in {name.partition(":")[0] for name in another.names()}:
        another.json("DELETE", f"/v1/models/{model}", 200)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def connect(server: Server, receive_bytes: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.settimeout(20)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    sock.connect((host, int(port)))
    return sock


def offset(server: Server) -> int:
    return int(server.client.head(BLOB).headers.get("Upload-Offset", -1))


def quantry(server: Server, *arguments: str) -> Any:
    return CliRunner().invoke(build(), ["--url", server.url, *arguments])


# --- uploads -----------------------------------------------------------------------------------------------------


def test_an_upload_goes_on_after_the_server_was_killed_in_the_middle_of_a_piece(other: Server) -> None:
    server = other
    with connect(server) as sock:
        head = f"PATCH {BLOB} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Range: bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"
        sock.sendall(f"{head}\r\nContent-Length: {len(CONTENT)}\r\n\r\n".encode() + CONTENT[: 3 << 20])
        until(lambda: offset(server) >= 2 << 20)
        server.kill()
    server.start()
    came = offset(server)
    assert 2 << 20 <= came <= 3 << 20
    span = f"bytes {came}-{len(CONTENT) - 1}/{len(CONTENT)}"
    answer = server.client.patch(BLOB, content=CONTENT[came:], headers={"Content-Range": span})
    assert (answer.status_code, answer.json()["digest"]) == (201, DIGEST)
    assert server.client.get(BLOB).content == CONTENT
    assert list((server.home / "blobs" / "partial").iterdir()) == []


def test_the_command_sends_pieces_and_goes_on_where_a_run_before_ended(
    other: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = other
    monkeypatch.setattr(uploading, "PIECE_BYTES", 1 << 20)
    content = GLOSS.read_bytes()
    url = f"/v1/blobs/{digest_of(content)}"
    span = f"bytes 0-{(2 << 20) - 1}/{len(content)}"
    server.client.patch(url, content=content[: 2 << 20], headers={"Content-Range": span})
    sent: list[str] = []
    send = uploading.Client.send

    def counted(self: Any, method: str, path: str, **more: Any) -> Any:
        if method == "PATCH":
            sent.append(more["headers"]["Content-Range"])
        return send(self, method, path, **more)

    monkeypatch.setattr(uploading.Client, "send", counted)
    result = quantry(server, "import", "sent", str(GLOSS), "--upload")
    assert result.exit_code == 0, result.output
    assert sent[0].startswith(f"bytes {2 << 20}-")
    assert len(sent) == -(-(len(content) - (2 << 20)) // (1 << 20))
    assert server.names() == ["sent:F16"]


# --- downloads ---------------------------------------------------------------------------------------------------


def test_the_file_of_a_variant_is_byte_equal_whole_and_in_ranges(server: Server) -> None:
    expected = GLOSS.read_bytes()
    url = "/v1/variants/gloss:F16/file"
    whole = server.client.get(url)
    assert whole.content == expected
    assert whole.headers["ETag"] == f'"{digest_of(expected)}"'
    starts = list(range(0, len(expected), 1_234_567))
    random.Random(7).shuffle(starts)
    found = bytearray(len(expected))
    for start in starts:
        piece = server.client.get(url, headers={"Range": f"bytes={start}-{start + 1_234_566}"})
        assert piece.status_code == 206
        found[start : start + len(piece.content)] = piece.content
    assert found == expected


def test_a_reader_that_stops_is_cut_and_has_no_byte_that_is_not_the_files(server: Server) -> None:
    expected = GLOSS.read_bytes()
    with connect(server, receive_bytes=4096) as sock:
        sock.sendall(b"GET /v1/variants/gloss:F16/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: has_connection(server, sock))
        until(lambda: not has_connection(server, sock))
        received = bytearray()
        while chunk := _received(sock):
            received += chunk
    body = received.partition(b"\r\n\r\n")[2]
    assert len(body) < len(expected)
    assert expected.startswith(bytes(body))
    assert server.json("GET", "/health", 200)


def has_connection(server: Server, sock: socket.socket) -> bool:
    """Whether the server still holds its end of it."""
    port = sock.getsockname()[1]
    return any(one.raddr and one.raddr.port == port for one in server.process.net_connections("tcp"))


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 16)
    except ConnectionResetError:
        return b""


def test_the_command_exports_a_file_and_goes_on_with_a_part_of_it(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    result = quantry(server, "export", "gloss:F16", str(target))
    assert result.exit_code == 0, result.output
    content = target.read_bytes()
    assert content == GLOSS.read_bytes()
    assert quantry(server, "export", "gloss:F16", str(target)).exit_code == 2
    partial = tmp_path / f".out.gguf.{digest_of(content)[-12:]}.part"
    for left, exit_code in ((content[:1_000_000], 0), (bytes(1_000_000), 1), (b"", 0)):
        partial.write_bytes(left)
        result = quantry(server, "export", "gloss:F16", str(target), "--force")
        assert result.exit_code == exit_code, result.output
        assert not partial.exists()  # what was damaged is not taken up again
        assert target.read_bytes() == content
    missing = quantry(server, "export", "gloss:Q2_K", str(tmp_path))
    assert (missing.exit_code, "quantry list" in missing.stderr) == (1, True)


# --- bundles -----------------------------------------------------------------------------------------------------


def test_a_bundle_is_a_valid_oci_layout_and_the_same_bytes_each_time(server: Server) -> None:
    answer = server.client.get("/v1/models/gloss/bundle")
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    head = server.client.head("/v1/models/gloss/bundle")
    assert (head.headers["Content-Length"], head.headers["ETag"]) == (str(len(answer.content)), answer.headers["ETag"])
    middle = len(answer.content) // 2
    rest = server.client.get(
        "/v1/models/gloss/bundle", headers={"Range": f"bytes={middle}-", "If-Range": answer.headers["ETag"]}
    )
    assert (rest.status_code, rest.content) == (206, answer.content[middle:])
    with tarfile.open(fileobj=BytesIO(answer.content)) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
        assert all((member.mtime, member.uid, member.mode) == (0, 0, 0o444) for member in archive.getmembers())
    assert json.loads(members.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads(members.pop("index.json"))
    assert (index["schemaVersion"], index["mediaType"]) == (2, "application/vnd.oci.image.index.v1+json")
    for name, content in members.items():
        assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"

    def blob(descriptor: dict[str, Any]) -> bytes:
        content = members[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert len(content) == descriptor["size"]
        return content

    named = {
        one["annotations"]["org.opencontainers.image.ref.name"]: json.loads(blob(one)) for one in index["manifests"]
    }
    assert set(named) == {*LEVELS, "prod", "latest"}
    for level in LEVELS:
        manifest = named[level]
        config, (layer,) = json.loads(blob(manifest["config"])), manifest["layers"]
        assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
        assert layer["mediaType"] == "application/vnd.docker.ai.gguf.v3"
        assert blob(layer)[:4] == b"GGUF"
        assert (config["config"]["format"], config["config"]["quantization"]) == ("gguf", level)
        assert config["rootfs"]["diff_ids"] == [layer["digest"]]


def test_a_model_goes_from_home_to_home(server: Server, other: Server, tmp_path: Path) -> None:
    path = tmp_path / "gloss.tar"
    result = quantry(server, "export", "gloss", "--bundle", str(path))
    assert result.exit_code == 0, result.output
    result = quantry(other, "import", "--bundle", str(path), "--upload")
    assert result.exit_code == 0, result.output
    before, after = (
        {row["digest"]: row for row in one.json("GET", "/v1/variants", 200)["data"]} for one in (server, other)
    )
    assert before.keys() == after.keys()
    for digest, row in after.items():
        assert (row["name"], row["aliases"]) == (before[digest]["name"], before[digest]["aliases"])
        assert row["lineage"]["origin"] == "imported"
        assert row["lineage"]["recipe"] == before[digest]["lineage"]["recipe"]
    text = {"model": "gloss:prod", "prompt": "It was", "max_tokens": 8, "temperature": 0}
    assert (
        other.json("POST", "/v1/generate", 200, text)["text"] == server.json("POST", "/v1/generate", 200, text)["text"]
    )
    assert other.json("POST", "/v1/variants/gloss:Q8_0/rebuild", 202, {})["kind"] == "rebuild"
    # Nothing of it is written again.
    again = other.json("POST", "/v1/bundles", 202, {"path": str(path), "name": "copy"})
    job = other.wait_for_job(again["id"])
    assert {step["detail"] for step in job["steps"]} == {"already stored"}
    assert job["result"] == [f"copy:{level}" for level in LEVELS]


def test_what_goes_with_a_model_goes_with_its_bundle(server: Server, other: Server, tmp_path: Path) -> None:
    adapter = tmp_path / "tone.gguf"
    tiny_models.write_adapter(adapter, GLOSS)
    for level in ("F16", "Q8_0"):
        server.json("POST", "/v1/models/copy", 201, {"source": f"gloss:{level}", "destination": f"whole:{level}"})
    put(server, IMATRIX)
    asked = {"model": "whole:F16", "dataset": None, "include": [digest_of(IMATRIX)]}
    (matrix,) = server.wait_for_job(server.json("POST", "/v1/calibrate", 202, asked)["id"])["result"]
    made = {"model": "whole:F16", "to": ["IQ3_S"], "imatrix": matrix}
    assert server.wait_for_job(server.json("POST", "/v1/quantize", 202, made)["id"])["status"] == "succeeded"
    asked = {"model": "whole:Q8_0", "name": "tone", "path": str(adapter)}
    server.json("POST", "/v1/adapters", 201, asked)
    pirate = {
        "model": "whole:pirate", "from": "whole:Q8_0", "stream": False, "system": "Answer as a pirate does.",
        "template": "{% for m in messages %}{{ m['content'] }} {% endfor %}", "parameters": {"temperature": 0},
        "adapters": {"tone.gguf": put(server, adapter.read_bytes())},
    }  # fmt: skip
    server.json("POST", "/api/create", 200, pirate)
    path = tmp_path / "whole.tar"
    assert quantry(server, "export", "whole", "--bundle", str(path)).exit_code == 0
    result = quantry(other, "import", "--bundle", str(path))
    assert result.exit_code == 0, result.output

    def shown(one: Server) -> list[Any]:
        listed = [one.json("GET", url, 200)["data"] for url in ("/v1/importance-matrices?model=whole", "/v1/adapters")]
        card = one.json("POST", "/api/show", 200, {"model": "whole:pirate"})
        return [
            [(row["digest"], row["chunks"]) for row in listed[0]],
            sorted((row["name"], row["digest"], row["rank"]) for row in listed[1] if row["model"] == "whole"),
            [card[key] for key in ("system", "template", "parameters", "modelfile")],
        ]

    assert shown(other) == shown(server)
    assert [row[0] for row in shown(other)[0]] == [matrix]
    text = {"model": "whole:pirate", "messages": [{"role": "user", "content": "It was"}], "stream": False}
    for body in (text, text | {"model": "whole:Q8_0", "options": {"temperature": 0}}):
        answers = [one.json("POST", "/api/chat", 200, body)["message"]["content"] for one in (server, other)]
        assert answers[0] == answers[1]
    # The level can be made again there, of its source and with its matrix.
    job = other.wait_for_job(other.json("POST", "/v1/variants/whole:IQ3_S/rebuild", 202, {})["id"])
    assert (job["status"], job["error"]) == ("succeeded", None)
    # The same once more writes nothing.
    again = other.wait_for_job(other.json("POST", "/v1/bundles", 202, {"path": str(path)})["id"])
    assert {step["detail"] for step in again["steps"]} == {"already stored"}
    server.json("DELETE", "/v1/models/whole", 200)


def put(server: Server, content: bytes) -> str:
    assert server.client.put(f"/v1/blobs/{digest_of(content)}", content=content).status_code in (200, 201)
    return digest_of(content)


def test_a_layout_of_others_is_taken_in_under_a_name(server: Server, other: Server, tmp_path: Path) -> None:
    model = server.client.get("/v1/variants/gloss:Q8_0/file").content
    texts: dict[str, bytes] = {}

    def put(content: bytes, media_type: str) -> dict[str, Any]:
        texts[f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"] = content
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    config = put(b'{"config": {"format": "gguf"}}', "application/vnd.docker.ai.model.config.v0.1+json")
    layers = [put(b"MIT", "application/vnd.docker.ai.license"), put(model, "application/vnd.docker.ai.gguf.v3")]
    manifest = {"schemaVersion": 2, "config": config, "layers": layers}
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "docker.io/ai/gloss:latest"}
    texts["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    texts["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    path = tmp_path / "others.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(texts.items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mtime = len(content), 12345.5  # type: ignore[assignment]
            archive.addfile(member, BytesIO(content))
    nameless = other.json("POST", "/v1/bundles", 400, {"path": str(path)})
    assert nameless["error"]["param"] == "name"
    result = quantry(other, "import", "theirs", str(path), "--json")
    assert result.exit_code == 0, result.output
    assert other.names() == ["theirs:Q8_0"]
    assert other.json("POST", "/v1/generate", 200, {"model": "theirs", "prompt": "It was", "max_tokens": 2})["text"]


def test_a_bundle_with_a_file_that_is_no_model_ends_the_job_and_leaves_what_was_taken_in(
    server: Server, other: Server, tmp_path: Path
) -> None:
    content = bytearray(server.client.get("/v1/models/gloss/bundle").content)
    at = content.rindex(b"GGUF\x03\x00\x00\x00")
    content[at + 100] ^= 1
    path = tmp_path / "damaged.tar"
    path.write_bytes(content)
    job = other.wait_for_job(other.json("POST", "/v1/bundles", 202, {"path": str(path)})["id"])
    assert (job["status"], job["error"]["code"]) == ("failed", "digest_mismatch")
    assert other.names() == job["result"] == ["gloss:F16", "gloss:Q8_0"]
    assert list((other.home / "blobs" / "incoming").iterdir()) == []
