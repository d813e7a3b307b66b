"""`/v1/variants`, `/v1/blobs` and the native half of `/v1/models`, on a real store."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
import structlog

from service.api.catalogue import best_sources, missing_levels

VARIANT_FIELDS = {
    "name",
    "aliases",
    "model",
    "quantization",
    "bits_per_weight",
    "size_bytes",
    "digest",
    "parameters",
    "context_length",
    "recommended",
    "advice",
    "reference",
    "measured",
    "card",
    "memory_bytes",
    "loaded",
    "lossy",
    "corrupt",
    "pinned",
    "lineage",
    "created_at",
    "license",
    "chat_template",
}

STOCK_RECIPE = {
    "quantization": "",
    "allow_requantize": False,
    "pure": False,
    "output_type": None,
    "token_embedding_type": None,
    "keep_output": False,
    "overrides": [],
    "metadata": {},
    "prune_layers": [],
    "importance_matrix": None,
}


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def test_variants_have_exactly_their_fields(client):
    body = (await client.get("/v1/variants")).json()
    assert set(body) == {"object", "data", "available"}
    assert [variant["name"] for variant in body["data"]] == ["gloss:F16", "gloss:Q8_0"]
    assert all(set(variant) == VARIANT_FIELDS for variant in body["data"])
    source, level = body["data"]
    assert level["aliases"] == ["gloss", "gloss:latest"]
    assert level["reference"] == {
        "size_gib_7b": 6.7,
        "perplexity_added_7b": 0.0004,
        "source": "published figures for one 7B model; not measured here",
    }
    assert level["advice"] == "very large, extremely low quality loss - not recommended"
    assert level["lineage"] == {
        "origin": "quantized",
        "source": "gloss:F16",
        "source_digest": source["digest"],
        "recipe": STOCK_RECIPE | {"quantization": "Q8_0"},
        "llama_build": "b1",
        "duration_seconds": 2.5,
        "lossy_source": False,
        "search": None,
        "converted_from": None,
        "remote": None,
    }
    assert (source["lossy"], level["lossy"], level["license"]) == (False, True, "Apache-2.0")


async def test_measurements_stay_apart_from_the_reference(client, api):
    api.catalog.add_measurement(api.catalog.resolve("gloss:Q8_0").id, "generation_speed", 12.5, "tokens_per_second")
    variant = (await client.get("/v1/variants/gloss:Q8_0")).json()
    assert [(m["name"], m["value"], m["unit"]) for m in variant["measured"]] == [
        ("generation_speed", 12.5, "tokens_per_second")
    ]
    assert "generation_speed" not in str(variant["reference"])


async def test_available_is_what_could_be_made_and_is_not_there(client, api):
    available = (await client.get("/v1/variants")).json()["available"]
    assert [(level["quantization"], level["source"], level["needs_imatrix"]) for level in available] == [
        ("Q4_K_M", "gloss:F16", False),
        ("IQ1_S", "gloss:F16", True),
    ]
    assert available[0]["size_bytes"] == 700
    assert available[0]["recommended"]
    assert available[0]["fits"]
    api.add("gloss", "Q4_K_M")
    available = (await client.get("/v1/variants?model=gloss")).json()["available"]
    assert [level["quantization"] for level in available] == ["IQ1_S"]


def test_the_best_source_has_lost_nothing_and_has_most_bits(api):
    lossless = api.catalog.resolve("gloss:F16")
    assert best_sources(api.catalog.variants()) == [lossless]
    other = api.add("gloss:chat", "F16", content=b"other")
    assert best_sources(api.catalog.variants()) == [lossless, other]
    assert [p.quantization for p in missing_levels(other, api.catalog.variants(), api.catalog.plans(other.digest))] == [
        "Q4_K_M",
        "IQ1_S",
    ]


async def test_context_changes_the_memory(client):
    small, large = [(await client.get(f"/v1/variants/gloss?context={n}")).json()["memory_bytes"] for n in (64, 4096)]
    assert small < large


@pytest.mark.parametrize("context", ["0", "-1", "1.5", "x", "99999999999999999999"])
async def test_an_impossible_context_is_refused(client, context):
    answer = await client.get(f"/v1/variants?context={context}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "context"


@pytest.mark.parametrize("ref", ["gloss", "GLOSS:q8_0", "library/gloss:Q8_0", "library%2Fgloss:Q8_0", "gloss:latest"])
async def test_names_are_taken_as_people_type_them(client, ref):
    assert (await client.get(f"/v1/variants/{ref}")).json()["name"] == "gloss:Q8_0"


@pytest.mark.parametrize(
    ("ref", "status"),
    [
        ("none", 404),
        ("gloss:Q2_K", 404),
        ("..%2f..%2fetc", 400),
        ("a%00b", 400),
        ("gl%C3%B6ss", 400),
        ("x@sha256:0", 400),
    ],
)
async def test_names_that_reach_nothing(client, ref, status):
    for method, path in (
        ("GET", f"/v1/variants/{ref}"), ("DELETE", f"/v1/variants/{ref}"), ("DELETE", f"/v1/models/{ref}"),
        ("GET", f"/v1/models/{ref}"), ("POST", f"/v1/variants/{ref}/verify"), ("POST", f"/v1/workers/{ref}/load"),
    ):  # fmt: skip
        answer = await client.request(method, path)
        assert answer.status_code == status, (method, path, answer.text)
        assert "/etc" not in answer.json()["error"]["message"]


async def test_deleting_a_variant_makes_it_a_404(client):
    answer = await client.delete("/v1/variants/gloss:Q8_0")
    gone = {"id": "gloss:Q8_0", "object": "variant", "deleted": True, "variants": ["gloss:Q8_0"], "orphaned": []}
    assert answer.json() == gone
    assert (await client.get("/v1/variants/gloss:Q8_0")).status_code == 404
    assert (await client.delete("/v1/variants/gloss:Q8_0")).status_code == 404
    assert (await client.delete("/v1/models/gloss")).json()["variants"] == ["gloss:F16"]


async def test_a_copy_is_a_second_name_for_the_same_bytes(client):
    answer = await client.post("/v1/models/copy", json={"source": "gloss:Q8_0", "destination": "mine"})
    assert answer.status_code == 201
    assert answer.json()["name"] == "mine:Q8_0"
    assert answer.json()["digest"] == (await client.get("/v1/variants/gloss:Q8_0")).json()["digest"]
    missing = await client.post("/v1/models/copy", json={"source": "none", "destination": "mine"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "source")
    mismatch = await client.post("/v1/models/copy", json={"source": "gloss:Q8_0", "destination": "x:Q4_K"})
    assert mismatch.json()["error"]["code"] == "label_mismatch"


async def test_verify_marks_a_damaged_blob_and_clears_a_mended_one(client, api):
    variant = api.catalog.resolve("gloss:Q8_0")
    assert (await client.post("/v1/variants/gloss:Q8_0/verify")).json()["intact"]
    path = api.blobs.path(variant.digest)
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(b"x" * len(content))
    assert (await client.post("/v1/variants/gloss:Q8_0/verify")).json()["intact"] is False
    assert (await client.get("/v1/variants/gloss:Q8_0")).json()["corrupt"]
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["gloss:F16"]
    mended = await client.put(f"/v1/blobs/{variant.digest}", content=content)
    assert mended.status_code == 201
    assert (await client.get("/v1/variants/gloss:Q8_0")).json()["corrupt"] is False
    assert (await client.post("/v1/variants/gloss:Q8_0/verify")).json()["intact"]


# --- uploads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("with_length", [True, False])
async def test_an_upload_is_stored_once_under_its_digest(client, api, size, with_length):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    digest = digest_of(content)

    async def chunks():
        for start in range(0, size, 65536):
            yield content[start : start + 65536]

    assert (await client.head(f"/v1/blobs/{digest}")).status_code == 404
    first = await client.put(f"/v1/blobs/{digest}", content=content if with_length else chunks())
    assert (first.status_code, first.json()) == (201, {"digest": digest, "size_bytes": size})
    assert (await client.put(f"/v1/blobs/{digest}", content=content)).status_code == 200
    head = await client.head(f"/v1/blobs/{digest}")
    assert (head.status_code, head.headers["X-Quantry-Size-Bytes"]) == (200, str(size))
    assert api.blobs.path(digest).read_bytes() == content
    assert digest in api.catalog.referenced_digests()


async def test_bytes_that_do_not_match_leave_nothing(client, api):
    digest = digest_of(b"something else")
    answer = await client.put(f"/v1/blobs/{digest}", content=b"bytes")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "digest_mismatch")
    assert list(api.blobs.incoming.iterdir()) == []
    assert not api.blobs.has(digest)
    assert digest not in api.catalog.referenced_digests()


@pytest.mark.parametrize("with_length", [True, False])
async def test_an_upload_over_the_limit_leaves_nothing(make_api, with_length):
    async def chunks():
        yield b"x" * 5000

    api = make_api(max_upload_bytes=4096)
    digest = digest_of(b"x" * 5000)
    async with api.client() as client:
        answer = await client.put(f"/v1/blobs/{digest}", content=b"x" * 5000 if with_length else chunks())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert list(api.blobs.incoming.iterdir()) == []


async def test_an_upload_that_does_not_fit_is_507(client, api):
    api.blobs.reserve_bytes = 1 << 62
    answer = await client.put(f"/v1/blobs/{digest_of(b'bytes')}", content=b"bytes")
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")


async def test_an_upload_whose_client_leaves_leaves_nothing(api, raw):
    digest = digest_of(b"bytes")
    request = raw("PUT", f"/v1/blobs/{digest}", headers=[(b"content-length", b"5")])
    app = request.app

    async def leaves(scope, receive, send):
        messages = [{"type": "http.request", "body": b"by", "more_body": True}, {"type": "http.disconnect"}]

        async def two():
            return messages.pop(0)

        await app(scope, two, send)

    request.app = leaves
    await request.run()
    assert request.sent == []
    assert list(api.blobs.incoming.iterdir()) == []


@pytest.mark.parametrize(
    "digest", ["sha256:" + "A" * 64, "sha256:abc", "md5:" + "0" * 64, "..%2f..%2fetc", "sha256-" + "0" * 64]
)
async def test_a_crooked_digest_is_refused(client, digest):
    for method in ("PUT", "HEAD"):
        assert (await client.request(method, f"/v1/blobs/{digest}")).status_code in (400, 404, 405)


# --- imports (queued: this process runs no child) ----------------------------------------------------------------


async def test_an_import_that_takes_longer_is_a_job(client, tmp_path):
    content = b"not yet looked at"
    await client.put(f"/v1/blobs/{digest_of(content)}", content=content)
    answer = await client.post("/v1/models", json={"name": "new", "digest": digest_of(content)})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["kind"], job["status"], job["model"]) == ("import", "queued", "new")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    by_path = await client.post("/v1/models", json={"name": "by-path", "path": str(tmp_path / "model.gguf")})
    assert by_path.status_code == 202
    assert str(tmp_path) not in by_path.text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "x"}, "invalid_parameter"),
        ({"name": "x", "path": "/a", "digest": "sha256:" + "0" * 64}, "invalid_parameter"),
        ({"name": "x", "path": "relative.gguf"}, "invalid_parameter"),
        ({"name": "x", "path": "/a\x00b"}, "invalid_parameter"),
        ({"name": "x", "path": "/no/such/file.gguf"}, "invalid_parameter"),
        ({"name": "x", "digest": "sha256:1"}, "invalid_name"),
        ({"name": "../x", "path": "/a"}, "invalid_name"),
    ],
)
async def test_an_import_of_nothing_is_refused(client, body, code):
    answer = await client.post("/v1/models", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)


async def test_an_import_of_an_unknown_blob_is_404(client):
    answer = await client.post("/v1/models", json={"name": "x", "digest": "sha256:" + "0" * 64})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "blob_not_found")


# --- workers of what is deleted -----------------------------------------------------------------------------------


async def test_deleting_unloads_a_blob_that_nobody_needs_any_more(client, api):
    await client.post("/v1/workers/gloss:F16/load")
    await client.post("/v1/workers/gloss:Q8_0/load")
    assert (await client.delete("/v1/variants/gloss:F16")).status_code == 200
    await asyncio.sleep(0)
    assert [variant.name for variant in api.pool.loaded.values()] == ["gloss:Q8_0"]
    assert (await client.delete("/v1/models/gloss")).status_code == 200
    await asyncio.sleep(0)
    assert api.pool.loaded == {}


async def test_deleting_one_of_two_names_keeps_the_blob_loaded(client, api):
    await client.post("/v1/models/copy", json={"source": "gloss:F16", "destination": "other"})
    await client.post("/v1/workers/gloss:F16/load")
    assert (await client.delete("/v1/variants/gloss:F16")).status_code == 200
    await asyncio.sleep(0)
    assert len(api.pool.loaded) == 1
    await client.delete("/v1/variants/other:F16")
    await asyncio.sleep(0)
    assert api.pool.loaded == {}


async def test_the_answer_to_a_delete_does_not_wait_for_the_worker(client, api, monkeypatch):
    ended = asyncio.Event()

    async def busy(variant):
        await ended.wait()
        return True

    monkeypatch.setattr(api.pool, "unload", busy)
    answer = await asyncio.wait_for(client.delete("/v1/variants/gloss:F16"), 5)
    assert answer.json()["variants"] == ["gloss:F16"]
    ended.set()


async def test_an_unload_that_fails_is_logged(client, api, monkeypatch):
    async def broken(variant):
        raise OSError("no")

    monkeypatch.setattr(api.pool, "unload", broken)
    with structlog.testing.capture_logs() as lines:
        assert (await client.delete("/v1/variants/gloss:F16")).status_code == 200
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert [line["work"] for line in lines if line["event"] == "background_work_failed"] == ["unload gloss:F16"]


async def test_what_was_made_of_a_lossy_source_is_not_said_to_be_lossless(client, api):
    lossy = api.add("worn", "Q8_0")
    api.add("worn", "F32", source=lossy)
    api.add("worn", "Q4_0", source=lossy)
    floats, level = [(await client.get(f"/v1/variants/worn:{label}")).json() for label in ("F32", "Q4_0")]
    assert (floats["advice"], floats["reference"]) == (None, None)
    assert (level["advice"] is None, level["reference"]) == (False, None)


async def test_a_missing_name_is_named(client):
    answer = await client.post("/v1/models", json={"path": "/x.gguf"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "name"
