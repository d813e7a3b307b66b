"""Who may come in: keys on every route, sane hosts, no foreign origins."""

from __future__ import annotations

import re

import pytest

from service.api.auth import PUBLIC_PATHS, hash_keys

KEY = "a-key-of-at-least-sixteen-characters"


def routes_of(app) -> list[tuple[str, str]]:
    """(method, path) of every route there is, documents included; parameters filled in."""
    filled = set()
    for route in _walk(app.routes):
        path = re.sub(r"\{digest.*?\}", "sha256:" + "0" * 64, route.path)
        path = re.sub(r"\{.*?\}", "gloss", path)
        filled |= {(method, path) for method in route.methods}
    return sorted(filled)


def _walk(routes):
    for route in routes:
        included = getattr(route, "original_router", None)
        yield from _walk(included.routes) if included is not None else [route]


@pytest.fixture
def locked(make_api):
    return make_api(api_key_hashes=hash_keys([KEY, "another-key-of-sixteen-chars"]))


BAD_KEYS = [
    {},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": "Bearer "},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": KEY},
    {"X-API-Key": ""},
    {"X-API-Key": KEY.upper()},
    {"X-API-Key": "\u00e9" * 16},
]


@pytest.mark.parametrize("headers", BAD_KEYS)
async def test_every_route_but_health_and_ready_asks_for_a_key(locked, headers):
    sent = {name: value.encode("latin-1") for name, value in headers.items()}
    routes = routes_of(locked.app)
    assert len(routes) > 30
    async with locked.client() as client:
        for method, path in routes:
            answer = await client.request(method, path, headers=sent)
            if path in PUBLIC_PATHS:
                assert answer.status_code == 200, path
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                if method != "HEAD":
                    assert "invalid_api_key" in answer.text  # where it stands depends on the dialect


@pytest.mark.parametrize(
    "path",
    ["//health", "/health/", "/health/../v1/jobs", "/v1/jobs?/health", "/v1/jobs#/health", "/%2e/health", "/HEALTH"],
)
async def test_no_spelling_of_a_public_path_opens_another(locked, path):
    async with locked.client() as client:
        assert (await client.get(path)).status_code in (200, 401)
        assert "data" not in (await client.get(path)).json()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer  {KEY}"},
        {"X-API-Key": KEY},
        {"X-API-Key": "another-key-of-sixteen-chars"},
    ],
)
async def test_a_known_key_opens(locked, headers):
    async with locked.client(headers=headers) as client:
        assert (await client.get("/v1/variants")).status_code == 200


async def test_without_keys_none_is_asked_for(client):
    assert (await client.get("/v1/variants", headers={"Authorization": "Bearer whatever"})).status_code == 200


BAD_HOSTS = [
    "",
    " ",
    "x/?",
    "x#",
    "a@b",
    "a b",
    "a\tb",
    "x/../",
    "x?y",
    "x\\y",
    "127.0.0.1/health?",
    "127.0.0.1#",
    "[::1",
    "::1",
    "127.0.0.1:port",
    "127.0.0.1:",
    "127.0.0.1:999999",
    "*",
    "a,b",
    "http://127.0.0.1",
    "%00",
    "x%2f",
    "-",
    ".",
    "..",
    "127.0.0.1 evil",
    "localhost\x0bx",
    "\u00e9",
    "x" * 300,
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "0.0.0.0",
    "10.0.0.1",
    "169.254.169.254",
    "[::ffff:10.0.0.1]",
    "2130706433",
    "0x7f.1",
    "metadata",
]


@pytest.mark.parametrize("host", BAD_HOSTS)
async def test_a_foreign_or_crooked_host_reaches_no_route(api, raw, host):
    for method, path in routes_of(api.app):
        request = _with_host(raw(method, path), host.encode("utf-8"))
        await request.run()
        assert request.status == 403, (method, path)


@pytest.mark.parametrize("hosts", [(), (b"127.0.0.1", b"127.0.0.1"), (b"127.0.0.1", b"evil.example")])
async def test_a_host_comes_exactly_once(api, raw, hosts):
    request = _with_host(raw("GET", "/v1/variants"), *hosts)
    await request.run()
    assert request.status == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:1", "127.1.2.3", "localhost", "LOCALHOST:8080", "[::1]", "[::1]:80"]
)
async def test_loopback_names_are_answered(api, raw, host):
    request = _with_host(raw("GET", "/v1/variants"), host.encode())
    await request.run()
    assert request.status == 200


@pytest.mark.parametrize(
    ("allowed", "keys", "host", "status"),
    [
        (("models.lan",), (), b"models.lan:8080", 200),
        (("models.lan",), (), b"other.lan", 403),
        ((), (KEY,), b"anything.example", 200),
        (("models.lan",), (KEY,), b"anything.example", 403),
        (("models.lan",), (KEY,), b"models.lan", 200),
        ((), (KEY,), b"x/?", 403),
    ],
)
async def test_which_hosts_are_answered(make_api, raw, allowed, keys, host, status):
    api = make_api(allowed_hosts=allowed, api_key_hashes=hash_keys(keys))
    request = _with_host(raw("GET", "/v1/variants", headers=[(b"x-api-key", KEY.encode())], app=api.app), host)
    await request.run()
    assert request.status == status


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "https://127.0.0.1:9999", "http://127.0.0.1", "file://", "", "127.0.0.1:8080"],
)
async def test_a_foreign_origin_is_refused(client, origin):
    for method, path in (("GET", "/v1/variants"), ("POST", "/v1/generate"), ("OPTIONS", "/v1/generate")):
        answer = await client.request(method, path, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_the_own_origin_is_answered(client):
    assert (await client.get("/v1/variants", headers={"Origin": "http://127.0.0.1:8080"})).status_code == 200


async def test_no_answer_carries_cors_headers(client):
    answer = await client.get("/v1/variants")
    assert not [name for name in answer.headers if name.startswith("access-control")]


def _with_host(request, *hosts: bytes):
    app, extra = request.app, list(request.headers)

    async def replaced(scope, receive, send):
        kept = [(name, value) for name, value in scope["headers"] if name != b"host"]
        await app({**scope, "headers": [*((b"host", host) for host in hosts), *kept, *extra]}, receive, send)

    request.app, request.headers = replaced, ()
    return request
