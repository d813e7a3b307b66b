"""Health, readiness, versions, figures, workers, and the document that describes it all."""

from __future__ import annotations

import re

import structlog

from service.api.auth import hash_keys
from service.domain.errors import leaves

# The shapes of errors, by dialect.
ERRORS = ("/ErrorBody", "/AnthropicError", "/LlamaServerError", "/OllamaError")


async def test_health_stays_while_ready_goes_at_draining(client, api):
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).status_code == 200
    assert (await client.head("/health")).status_code == 200
    api.pool.draining = True
    assert (await client.get("/health")).status_code == 200
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
    assert answer.headers["Retry-After"] == "5"


async def test_versions(client):
    assert (await client.get("/version")).json()["name"] == "quantry"


async def test_figures_are_those_of_now(client, api):
    await client.post("/v1/workers/gloss/load")
    await client.get("/v1/variants/gloss:none")
    text = (await client.get("/metrics")).text
    assert 'quantry_workers{state="ready"} 1.0' in text
    assert "quantry_models 1.0" in text
    assert "quantry_variants 2.0" in text
    assert f"quantry_store_bytes {float(api.blobs.total_bytes())}" in text
    assert 'quantry_jobs{status="queued"} 0.0' in text
    assert 'quantry_requests_total{route="/v1/variants/{ref:path}",status="404"} 1.0' in text
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert all(name.startswith("quantry_") for name in names)


async def test_unknown_paths_share_one_label(client):
    for path in ("/a", "/b", "/c"):
        await client.get(path)
    text = (await client.get("/metrics")).text
    assert 'quantry_requests_total{route="unmatched",status="404"} 3.0' in text


async def test_workers_are_loaded_listed_and_unloaded(client):
    assert (await client.get("/v1/workers")).json() == {
        "object": "list", "data": [], "queue_depth": 0, "draining": False,
    }  # fmt: skip
    loaded = await client.post("/v1/workers/gloss/load")
    assert (loaded.status_code, loaded.json()["name"], loaded.json()["state"]) == (200, "gloss:Q8_0", "ready")
    assert [worker["name"] for worker in (await client.get("/v1/workers")).json()["data"]] == ["gloss:Q8_0"]
    assert (await client.get("/v1/variants/gloss")).json()["loaded"]
    assert (await client.post("/v1/workers/gloss/unload")).json() == {"name": "gloss:Q8_0", "loaded": False}
    assert (await client.get("/v1/workers")).json()["data"] == []


async def test_the_document_declares_errors_summaries_and_no_foreign_422(client):
    document = (await client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in str(document)
    identities = set()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            identities.add(operation["operationId"])
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith(ERRORS)
    assert len(identities) == sum(len(operations) for operations in document["paths"].values())


async def test_every_component_of_the_document_has_a_name_of_its_own_that_can_be_read(client):
    document = (await client.get("/openapi.json")).json()
    # Two of one name get their modules' paths before it, and generics their brackets as underscores.
    assert [name for name in document["components"]["schemas"] if not re.fullmatch("[A-Za-z]+", name)] == []
    assert {"ChatBody", "OllamaChatBody", "JobListing"} <= document["components"]["schemas"].keys()


async def test_the_document_declares_keys_where_they_are_asked_for(client, make_api):
    assert "security" not in (await client.get("/openapi.json")).json()
    document = make_api(api_key_hashes=hash_keys(["x" * 16])).app.openapi()
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert document["paths"]["/health"]["get"]["security"] == []


async def test_the_log_has_no_prompt_and_no_raw_control_characters(client, api):
    with structlog.testing.capture_logs() as lines:
        await client.post("/v1/generate", json={"model": "gloss", "prompt": "SECRET PROMPT", "max_tokens": 1})
        await client.get("/v1/variants/%0d%0a%1b[31mforged")
    assert len(lines) == 2
    assert "SECRET" not in str(lines)
    assert lines[0]["route"] == "/v1/generate"
    assert lines[0]["status"] == 200
    assert "\r" not in lines[1]["path"]
    assert "\x1b" not in lines[1]["path"]


def test_codes_of_the_tree_are_unique():
    codes = [leaf.code for leaf in leaves()]
    # The root shares its code with InternalError; nothing else may.
    assert len(codes) - len(set(codes)) == 1
