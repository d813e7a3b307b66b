"""How much a request may bring, and in which form."""

from __future__ import annotations

import asyncio
import json

import pytest

JSON = {"content-type": "application/json"}


async def test_a_body_over_the_limit_is_refused_by_its_length(make_api):
    api = make_api(max_body_bytes=2048)
    async with api.client() as client:
        answer = await client.post("/v1/generate", json={"model": "x", "prompt": "x" * 3000})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert answer.headers["connection"] == "close"


async def test_a_body_over_the_limit_is_refused_without_a_length(make_api):
    async def endless():
        while True:
            yield b"x" * 65536

    api = make_api(max_body_bytes=2048)
    async with api.client() as client:
        answer = await client.post("/v1/generate", content=endless(), headers=JSON)
    assert answer.status_code == 413


async def test_a_lying_length_is_not_believed(make_api, raw):
    api = make_api(max_body_bytes=2048)
    request = raw("POST", "/v1/generate", b" " * 4096, headers=[(b"content-length", b"10")], app=api.app)
    await request.run()
    assert request.status == 413


async def test_a_body_that_does_not_come_is_given_up(make_api):
    async def slow():
        yield b"{"
        await asyncio.Event().wait()

    api = make_api(body_read_timeout_seconds=0.05)
    async with api.client() as client:
        answer = await asyncio.wait_for(client.post("/v1/generate", content=slow(), headers=JSON), 5)
    assert answer.status_code == 408
    assert answer.headers["connection"] == "close"
    assert answer.json()["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/json",
        "application/jsonx",
    ],
)
async def test_only_json_is_read(client, content_type):
    body = json.dumps({"model": "gloss", "prompt": "x"}).encode()
    for path in ("/v1/generate", "/v1/chat/completions", "/v1/quantize", "/v1/models", "/v1/workers/gloss/load"):
        answer = await client.post(path, content=body, headers={"content-type": content_type})
        assert answer.status_code == 415, path
        assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_read_however_it_is_spelt(client, content_type):
    body = json.dumps({"model": "gloss", "prompt": "x"}).encode()
    answer = await client.post("/v1/generate", content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
async def test_compressed_bodies_are_refused(client, encoding):
    for method, path in (("POST", "/v1/generate"), ("PUT", "/v1/blobs/sha256:" + "0" * 64)):
        answer = await client.request(method, path, content=b"x", headers={**JSON, "content-encoding": encoding})
        assert answer.status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"}", b"nul", b'{"a": "\\ud800"}', b'"\xff"', b'{"a":1} x', b"\xef\xbb\xbf{}", b"{'a': 1}",
        b'{"a": NaN', b'{"a": 1NaN}', b"NaN", b"-Infinity",
        b"1e400", b"\x00", b'{"a": 1,}', b"// x\n{}", b"[]", b"null", b'"x"', b"1", b"",
    ],
)  # fmt: skip
async def test_a_malformed_body_is_a_400(client, body):
    for path in ("/v1/generate", "/v1/chat/completions"):
        answer = await client.post(path, content=body, headers=JSON)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "malformed_body"


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
async def test_a_deep_body_is_refused_before_it_is_parsed(client, opening):
    answer = await client.post("/v1/generate", content=opening * 100_000, headers=JSON)
    assert answer.status_code == 400
    assert "deeper" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("POST", "/v1/nowhere")])
async def test_an_unknown_route_is_a_json_404(client, method, path):
    answer = await client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "route_not_found"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/generate"), ("PATCH", "/v1/variants"), ("DELETE", "/health")]
)
async def test_a_wrong_method_is_a_json_405(client, method, path):
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"]
    assert method not in answer.headers["allow"]
    assert answer.json()["error"]["code"] == "route_not_found"


async def test_a_405_names_the_methods_of_every_route_on_the_path(client):
    assert (await client.put("/v1/models")).headers["allow"] == "GET, POST"
    assert (await client.options("/v1/jobs/job_1")).headers["allow"] == "DELETE, GET"


@pytest.mark.parametrize("given_id", ["abc-123_x.y", "a" * 64])
async def test_a_request_id_is_taken_over(client, given_id):
    answer = await client.get("/health", headers={"X-Request-Id": given_id})
    assert answer.headers["X-Request-Id"] == given_id


@pytest.mark.parametrize("given_id", ["", "a" * 65, "a b", "a/b", "\u00e9"])
async def test_a_crooked_request_id_is_replaced(client, given_id):
    answer = await client.get("/health", headers={"X-Request-Id": given_id.encode("latin-1")})
    assert answer.headers["X-Request-Id"] != given_id
    assert len(answer.headers["X-Request-Id"]) == 32


async def test_refusals_carry_a_request_id_too(client):
    assert (await client.get("/nowhere")).headers["X-Request-Id"]
    assert (await client.post("/v1/generate", content=b"{", headers=JSON)).headers["X-Request-Id"]
