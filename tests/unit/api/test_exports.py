"""Stored files as downloads: whole, in ranges, refused when damaged, cut when nobody reads."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable

import httpx
import pytest

from tests.unit.api.conftest import Api, MakeApi, RawRequest

CONTENT = random.Random(66).randbytes(3_000_000)
SIZE = len(CONTENT)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
FILE = "/v1/variants/whole:Q4_K_M/file"
URLS = [FILE, f"/v1/blobs/{DIGEST}"]


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    api = make_api()
    api.add("whole", "Q4_K_M", content=CONTENT)
    return api


@pytest.mark.parametrize("url", URLS)
async def test_the_whole_file_is_sent_with_its_digest(client: httpx.AsyncClient, url: str) -> None:
    answer = await client.get(url)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for one in (answer, head):
        assert one.headers["ETag"] == f'"{DIGEST}"'
        assert one.headers["Content-Length"] == str(SIZE)
        assert one.headers["Accept-Ranges"] == "bytes"


async def test_it_has_a_name_and_says_how_long_it_may_be_kept(client: httpx.AsyncClient) -> None:
    named, by_digest = await client.get(FILE), await client.get(URLS[1])
    assert named.headers["Content-Disposition"] == 'attachment; filename="whole-Q4_K_M.gguf"'
    assert named.headers["Cache-Control"] == "private, no-cache"
    assert "immutable" in by_digest.headers["Cache-Control"]


@pytest.mark.parametrize("url", URLS)
async def test_ranges_in_any_order_make_the_file(client: httpx.AsyncClient, url: str) -> None:
    starts = list(range(0, SIZE, 700_001))
    random.Random(1).shuffle(starts)
    found = bytearray(SIZE)
    for start in starts:
        stop = min(start + 700_001, SIZE)
        answer = await client.get(url, headers={"Range": f"bytes={start}-{stop - 1}"})
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{SIZE}"
        assert answer.headers["Content-Length"] == str(stop - start)
        found[start:stop] = answer.content
    assert bytes(found) == CONTENT


async def test_a_range_holds_only_for_the_file_it_was_begun_with(client: httpx.AsyncClient) -> None:
    for tag, status in ((f'"{DIGEST}"', 206), ('"other"', 200)):
        answer = await client.get(FILE, headers={"Range": "bytes=10-", "If-Range": tag})
        assert answer.status_code == status
        assert answer.content == (CONTENT[10:] if status == 206 else CONTENT)


async def test_several_ranges_are_answered_with_the_whole(client: httpx.AsyncClient) -> None:
    answer = await client.get(FILE, headers={"Range": "bytes=0-1,5-6"})
    assert (answer.status_code, len(answer.content)) == (200, SIZE)


async def test_a_range_past_the_end_is_refused_with_the_length(client: httpx.AsyncClient) -> None:
    answer = await client.get(FILE, headers={"Range": f"bytes={SIZE}-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


async def test_what_the_client_has_is_not_sent_again(client: httpx.AsyncClient) -> None:
    answer = await client.get(FILE, headers={"If-None-Match": f'"{DIGEST}"'})
    assert (answer.status_code, answer.content) == (304, b"")


@pytest.mark.parametrize("url", URLS)
async def test_a_damaged_file_is_refused(api: Api, client: httpx.AsyncClient, url: str) -> None:
    api.catalog.mark_corrupt(DIGEST, True)
    answer = await client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "blob_corrupt")


@pytest.mark.parametrize("url", URLS)
async def test_a_file_of_another_length_is_refused(api: Api, client: httpx.AsyncClient, url: str) -> None:
    path = api.blobs.path(DIGEST)
    path.chmod(0o600)
    path.write_bytes(CONTENT[:-1])
    answer = await client.get(url)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "blob_corrupt")


async def test_what_is_not_there_is_not_found(api: Api, client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/variants/nothing/file")).json()["error"]["code"] == "model_not_found"
    missing = await client.get(f"/v1/blobs/sha256:{'0' * 64}")
    assert missing.json()["error"]["code"] == "blob_not_found"
    assert (await client.get("/v1/blobs/sha256:..%2F..%2Fetc")).status_code in (400, 404)
    api.blobs.path(DIGEST).unlink()
    assert (await client.get(FILE)).json()["error"]["code"] == "blob_not_found"


async def test_a_reader_that_stops_is_cut(make_api: MakeApi, raw: Callable[..., RawRequest]) -> None:
    api = make_api(stream_stall_seconds=0.05)
    api.add("whole", "Q4_K_M", content=CONTENT)
    request = raw("GET", FILE, app=api.app)
    request.block_sends = asyncio.Event()
    await asyncio.wait_for(request.run(), 10)
    assert (request.status, request.text) == (200, "")


async def test_a_client_that_hangs_up_ends_its_download(raw: Callable[..., RawRequest]) -> None:
    request = raw("GET", FILE)
    request.block_sends = asyncio.Event()
    request.hang_up.set()
    await asyncio.wait_for(request.run(), 10)
    assert request.text == ""
