"""Uploads in pieces: what every piece is answered with, and that what has come in stays."""

from __future__ import annotations

import asyncio
import hashlib
import random

import httpx
import pytest

from service.store.piecewise import PiecewiseUploads
from tests.unit.api.conftest import Api, MakeApi

CONTENT = random.Random(6).randbytes(300_000)
SIZE = len(CONTENT)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
URL = f"/v1/blobs/{DIGEST}"


async def patch(
    client: httpx.AsyncClient, start: int, stop: int, *, content: bytes = CONTENT, total: int = SIZE, url: str = URL
) -> httpx.Response:
    headers = {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
    return await client.patch(url, content=content[start:stop], headers=headers)


async def standing(client: httpx.AsyncClient) -> tuple[int, str | None, str | None]:
    answer = await client.head(URL)
    return answer.status_code, answer.headers.get("Upload-Offset"), answer.headers.get("Upload-Length")


async def test_pieces_in_order_become_a_blob(api: Api, client: httpx.AsyncClient) -> None:
    assert await standing(client) == (404, None, None)
    first = await patch(client, 0, 100_000)
    assert (first.status_code, first.headers["Upload-Offset"], first.headers["Upload-Length"]) == (
        202,
        "100000",
        str(SIZE),
    )
    assert first.json() == {"digest": DIGEST, "size_bytes": SIZE, "received_bytes": 100_000}
    assert await standing(client) == (404, "100000", str(SIZE))
    assert (await patch(client, 100_000, 100_001)).status_code == 202
    last = await patch(client, 100_001, SIZE)
    assert (last.status_code, last.json()) == (201, {"digest": DIGEST, "size_bytes": SIZE})
    assert last.headers["Location"] == URL
    assert api.blobs.path(DIGEST).read_bytes() == CONTENT
    assert api.catalog.blob(DIGEST) is not None
    assert list(api.services.partials.root.iterdir()) == []
    assert (await client.head(URL)).status_code == 200


async def test_a_piece_that_begins_elsewhere_is_told_where_the_upload_stands(client: httpx.AsyncClient) -> None:
    await patch(client, 0, 1000)
    for start in (0, 999, 1001):
        answer = await patch(client, start, start + 500)
        assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")
        assert answer.headers["Upload-Offset"] == "1000"


async def test_a_blob_that_is_there_is_not_sent_again(api: Api, client: httpx.AsyncClient) -> None:
    api.put(CONTENT)
    answer = await patch(client, 0, 1000)
    assert (answer.status_code, answer.json()) == (200, {"digest": DIGEST, "size_bytes": SIZE})


async def test_wrong_bytes_leave_nothing(api: Api, client: httpx.AsyncClient) -> None:
    await patch(client, 0, 1000)
    answer = await patch(client, 1000, SIZE, content=bytes(SIZE))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_mismatch")
    assert await standing(client) == (404, None, None)
    assert not api.blobs.has(DIGEST)
    assert list(api.blobs.incoming.iterdir()) == []
    assert (await patch(client, 0, SIZE)).status_code == 201


async def test_the_length_is_announced_once(client: httpx.AsyncClient) -> None:
    await patch(client, 0, 1000)
    answer = await patch(client, 1000, 2000, total=SIZE + 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


async def test_a_question_says_how_far_it_is_and_ends_what_is_whole(api: Api, client: httpx.AsyncClient) -> None:
    ask = {"Content-Range": f"bytes */{SIZE}"}
    first = await client.patch(URL, headers=ask)
    assert (first.status_code, first.headers["Upload-Offset"]) == (202, "0")
    # All bytes are here, and the server went down before it had looked at them.
    (folder,) = api.services.partials.root.iterdir()
    (folder / f"of-{SIZE}").write_bytes(CONTENT)
    assert (await client.patch(URL, headers=ask)).status_code == 201
    assert api.blobs.path(DIGEST).read_bytes() == CONTENT


async def test_an_upload_is_aborted(client: httpx.AsyncClient) -> None:
    await patch(client, 0, 1000)
    assert (await client.delete(f"{URL}/upload")).status_code == 204
    assert await standing(client) == (404, None, None)
    gone = await client.delete(f"{URL}/upload")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "blob_not_found")


@pytest.mark.parametrize(
    "header", [None, "", "bytes 0-9", "bytes 5-4/10", "bytes 0-10/10", "octets 0-4/10", "bytes 0-4/*", "bytes -1-4/10"]
)
async def test_a_piece_says_where_it_belongs(client: httpx.AsyncClient, header: str | None) -> None:
    headers = {} if header is None else {"Content-Range": header}
    answer = await client.patch(URL, content=b"12345", headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Content-Range")


async def test_a_body_that_is_not_what_the_range_says_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.patch(URL, content=b"12345", headers={"Content-Range": f"bytes 0-5/{SIZE}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Content-Range")

    async def endless() -> object:
        while True:
            yield CONTENT[:1000]

    longer = await client.patch(URL, content=endless(), headers={"Content-Range": f"bytes 0-9/{SIZE}"})  # type: ignore[arg-type]
    assert (longer.status_code, longer.json()["error"]["code"]) == (413, "body_too_large")


async def test_an_upload_over_the_limit_is_refused_at_its_first_piece(make_api: MakeApi) -> None:
    api = make_api(max_upload_bytes=SIZE - 1)
    async with api.client() as client:
        assert (await patch(client, 0, 10)).status_code == 413
    assert list(api.services.partials.root.iterdir()) == []


async def test_an_upload_that_does_not_fit_the_disk_is_refused(api: Api, client: httpx.AsyncClient) -> None:
    answer = await patch(client, 0, 10, total=10**17)
    assert answer.status_code == 413  # over the limit of an upload
    api.blobs.reserve_bytes = api.blobs.free_bytes()
    answer = await patch(client, 0, 10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")


async def test_of_two_writers_one_wins(api: Api, client: httpx.AsyncClient) -> None:
    piece = api.services.uploads.begin(DIGEST, SIZE, 0, 1000)
    second = await patch(client, 0, 1000)
    assert (second.status_code, second.json()["error"]["code"]) == (409, "conflict")
    assert (await client.delete(f"{URL}/upload")).status_code == 409
    piece.close()
    assert (await patch(client, 0, 1000)).status_code == 202


async def test_what_came_before_a_hang_up_stays(api: Api, client: httpx.AsyncClient) -> None:
    sent = [{"type": "http.request", "body": CONTENT[:5000], "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> dict[str, object]:
        return sent.pop(0)

    async def send(message: dict[str, object]) -> None:
        pass

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PATCH", "scheme": "http",
        "path": URL, "raw_path": URL.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1:8080"), (b"content-range", b"bytes 0-9999/%d" % SIZE)],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8080), "state": {},
    }  # fmt: skip
    await api.app(scope, receive, send)  # type: ignore[arg-type]
    assert await standing(client) == (404, "5000", str(SIZE))
    assert (await patch(client, 5000, SIZE)).status_code == 201


async def test_a_sender_that_stalls_is_told_and_keeps_what_came(make_api: MakeApi) -> None:
    api = make_api(body_read_timeout_seconds=0.05)

    async def stalling() -> object:
        yield CONTENT[:3000]
        await asyncio.sleep(1)

    async with api.client() as client:
        headers = {"Content-Range": f"bytes 0-9999/{SIZE}"}
        late = await client.patch(URL, content=stalling(), headers=headers)  # type: ignore[arg-type]
        assert (late.status_code, late.headers["Upload-Offset"]) == (408, "3000")
        assert await standing(client) == (404, "3000", str(SIZE))


async def test_a_server_that_starts_again_goes_on_with_the_hash_of_what_is_there(
    api: Api, client: httpx.AsyncClient
) -> None:
    await patch(client, 0, 200_000)
    object.__setattr__(api.services, "uploads", PiecewiseUploads(api.blobs, api.services.partials))
    assert await standing(client) == (404, "200000", str(SIZE))
    await patch(client, 200_000, 200_010)
    assert (await patch(client, 200_010, SIZE)).status_code == 201


async def test_a_damaged_blob_is_mended(api: Api, client: httpx.AsyncClient) -> None:
    api.put(CONTENT)
    api.catalog.add_blob(DIGEST, SIZE)
    path = api.blobs.path(DIGEST)
    path.chmod(0o600)
    path.write_bytes(bytes(SIZE))
    api.catalog.mark_corrupt(DIGEST, True)
    await patch(client, 0, 1000)
    assert (await patch(client, 1000, SIZE)).status_code == 201
    blob = api.catalog.blob(DIGEST)
    assert blob is not None
    assert not blob.corrupt
    assert path.read_bytes() == CONTENT
