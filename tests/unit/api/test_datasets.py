"""`/v1/datasets` on a real store."""

from __future__ import annotations

import hashlib
import json

import pytest

from service.api import datasets
from service.store.datasets import enter_built_in

TASK = json.dumps({"prompt": "1 + 1 =", "expected": "2"}).encode()


async def test_a_text_is_stored_read_and_replaced(client, api):
    greeting = "Grüße\n".encode()
    answer = await client.put("/v1/datasets/Mine", content=greeting)
    assert (answer.status_code, answer.headers["Location"]) == (201, "/v1/datasets/Mine")
    stored = answer.json()
    assert stored.pop("created_at")
    assert stored == {
        "name": "Mine",
        "kind": "text",
        "digest": f"sha256:{hashlib.sha256(greeting).hexdigest()}",
        "size_bytes": 8,
        "built_in": False,
    }
    read = await client.get("/v1/datasets/mine")
    assert (read.text, read.headers["X-Quantry-Size-Bytes"]) == ("Grüße\n", "8")
    assert read.headers["content-type"] == "text/plain; charset=utf-8"
    assert (await client.put("/v1/datasets/MINE", content=b"new")).status_code == 201
    (row,) = (await client.get("/v1/datasets")).json()["data"]
    assert (row["name"], row["size_bytes"]) == ("MINE", 3)


async def test_a_task_is_checked_line_by_line(client):
    assert (await client.put("/v1/datasets/sums?kind=task", content=TASK)).json()["kind"] == "task"
    answer = await client.put("/v1/datasets/sums?kind=task", content=TASK + b'\n{"prompt": "x"}')
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "invalid_parameter")
    assert "Line 2" in error["message"]
    assert (await client.get("/v1/datasets/sums")).content == TASK


@pytest.mark.parametrize(
    ("path", "content", "param"),
    [
        ("mine", b"", "body"),
        ("mine", b"\xff\xfe", "body"),
        ("mine", b"a\0b", "body"),
        ("mine?kind=picture", b"x", "kind"),
        ("-mine", b"x", "name"),
        ("a%20b", b"x", "name"),
        ("x" * 81, b"x", "name"),
    ],
)
async def test_what_is_no_dataset_is_refused(client, path, content, param):
    answer = await client.put(f"/v1/datasets/{path}", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_parameter", param)
    assert (await client.get("/v1/datasets")).json()["data"] == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_dataset_over_its_limit_is_refused(client, monkeypatch, announced):
    monkeypatch.setattr(datasets, "MAX_DATASET_BYTES", 10)

    async def pieces():
        yield b"12345678"
        yield b"90123"

    answer = await client.put("/v1/datasets/mine", content=b"1234567890123" if announced else pieces())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert (await client.put("/v1/datasets/mine", content=b"1234567890")).status_code == 201


async def test_those_that_come_with_quantry_stay(client, api):
    enter_built_in(api.blobs, api.services.laboratory)
    names = [(row["name"], row["kind"]) for row in (await client.get("/v1/datasets")).json()["data"]]
    assert names == [("calibration", "text"), ("evaluation", "text"), ("words", "task")]
    for answer in (await client.delete("/v1/datasets/words"), await client.put("/v1/datasets/words", content=b"x")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


async def test_one_that_was_sent_can_be_deleted(client):
    await client.put("/v1/datasets/mine", content=b"x")
    assert (await client.delete("/v1/datasets/MINE")).json() == {"id": "mine", "object": "dataset", "deleted": True}
    for answer in (await client.get("/v1/datasets/mine"), await client.delete("/v1/datasets/mine")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "dataset_not_found")
