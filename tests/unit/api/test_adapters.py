"""Adapters over HTTP: what is there, what requests say of them in each dialect, and what is refused."""

from __future__ import annotations

import pytest

from service.domain.catalog import AdapterFacts
from service.domain.generation import AdapterUse
from service.domain.names import parse_ref
from service.domain.presets import Preset
from service.jobs.queue import JobQueue

FACTS = AdapterFacts("llama", 4, 8.0, 2, 100, "about horses")
GLOSS = parse_ref("gloss").key


@pytest.fixture
def digests(api):
    """gloss has `tone` and `voice`; another model has its own `tone`."""
    api.add("hf.co/me/other", "F16")
    found = {}
    for key, name in ((GLOSS, "tone"), (GLOSS, "voice"), (parse_ref("hf.co/me/other").key, "tone")):
        digest = api.put(f"{key.display} {name}".encode())
        api.catalog.adapters.add(key, name, digest, 10, FACTS)
        found.setdefault(name, digest)
    return found


async def test_adapters_are_listed_by_model_and_shown_by_name(client, digests):
    listed = (await client.get("/v1/adapters")).json()["data"]
    assert [(one["model"], one["name"]) for one in listed] == [
        ("hf.co/me/other", "tone"), ("gloss", "tone"), ("gloss", "voice"),
    ]  # fmt: skip
    of_gloss = (await client.get("/v1/adapters", params={"model": "gloss:Q8_0"})).json()["data"]
    assert of_gloss == listed[1:]
    shown = (await client.get("/v1/adapters/hf.co/me/other/TONE")).json()
    assert shown == listed[0]
    assert (shown["rank"], shown["alpha"], shown["general_name"], shown["corrupt"]) == (4, 8.0, "about horses", False)


async def test_a_deleted_adapter_is_gone_and_its_namesake_stays(client, digests):
    answer = await client.delete("/v1/adapters/gloss:F16/Tone")
    assert answer.json() == {"id": "tone", "object": "adapter", "model": "gloss", "deleted": True}
    again = await client.delete("/v1/adapters/gloss/tone")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "adapter_not_found")
    assert (await client.get("/v1/adapters/hf.co/me/other/tone")).status_code == 200


async def test_an_adapter_that_a_name_was_made_with_stays_until_that_name_is_deleted(client, api, digests):
    variant = api.catalog.resolve("gloss:F16")
    api.catalog.copy(variant, parse_ref("gloss:mine"))
    preset = Preset(adapters=(AdapterUse("tone"),))
    api.services.presets.put(parse_ref("gloss:mine"), variant, preset)
    refused = await client.delete("/v1/adapters/gloss/tone")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert (await client.request("DELETE", "/api/delete", json={"model": "gloss:mine"})).status_code == 200
    assert (await client.get("/v1/adapters/gloss/tone")).status_code == 404, "it went with the name"


REQUESTS = {
    "/v1/generate": {"model": "gloss", "prompt": "Hi"},
    "/v1/completions": {"model": "gloss", "prompt": "Hi"},
    "/v1/chat/completions": {"model": "gloss", "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"model": "gloss", "input": "Hi"},
}


@pytest.mark.parametrize("path", REQUESTS)
async def test_requests_name_adapters_with_or_without_a_scale(path, client, api, digests):
    uses = ["Tone", {"name": "voice", "scale": -0.5}]
    answer = await client.post(path, json={**REQUESTS[path], "adapters": uses})
    assert answer.status_code == 200, answer.text
    _, asked = api.pool.submitted[-1]
    assert asked.adapters == (AdapterUse(digests["tone"], 1.0), AdapterUse(digests["voice"], -0.5))
    assert api.pool.adapters[-1] == ["tone", "voice"]


@pytest.mark.parametrize("path", REQUESTS)
async def test_an_unknown_adapter_is_404_and_those_that_are_there_are_named(path, client, digests):
    answer = await client.post(path, json={**REQUESTS[path], "adapters": ["tone", "tune"]})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "adapter_not_found", "adapters")
    assert "tone, voice" in error["message"]


@pytest.mark.parametrize("path", REQUESTS)
async def test_what_no_adapter_can_be_is_refused(path, client, api, digests):
    for uses in (
        "tone", [1], [None], ["a/b"], [""], [{"name": "tone", "scale": 101}], [{"name": "tone", "scale": "1"}],
        [{"name": "tone", "more": 1}], [{"scale": 1}], ["tone"] * 17,
    ):  # fmt: skip
        answer = await client.post(path, json={**REQUESTS[path], "adapters": uses})
        assert answer.status_code == 400, (uses, answer.text)
    assert api.pool.submitted == []


async def test_scales_of_one_adapter_add_up_and_none_is_loaded_for_nothing(client, api, digests):
    uses = ["tone", {"name": "tone", "scale": 0.5}, {"name": "voice", "scale": 0}]
    await client.post("/v1/generate", json={**REQUESTS["/v1/generate"], "adapters": uses})
    _, asked = api.pool.submitted[-1]
    assert asked.adapters == (AdapterUse(digests["tone"], 1.5),)
    assert api.pool.adapters[-1] == ["tone"]


async def test_llama_server_s_scales_hold_for_requests_that_send_none(client, api, digests):
    async def used(**more):
        answer = await client.post("/completion", json={"model": "gloss", "prompt": "Hi", **more})
        assert answer.status_code == 200, answer.text
        return api.pool.submitted[-1][1].adapters, answer.json()["generation_settings"]["lora"]

    assert await used() == ((), [])
    assert await used(lora=[{"id": 1, "scale": 2}]) == ((AdapterUse(digests["voice"], 2.0),), [{"id": 1, "scale": 2.0}])
    answer = await client.post("/lora-adapters", params={"model": "gloss"}, json=[{"id": 0, "scale": 0.5}])
    assert answer.json() == {"success": True}
    listed = (await client.get("/lora-adapters", params={"model": "gloss"})).json()
    assert [(one["id"], one["path"], one["scale"]) for one in listed] == [(0, "tone", 0.5), (1, "voice", 0.0)]
    assert (await used())[0] == (AdapterUse(digests["tone"], 0.5),)
    assert (await used(lora=[{"id": 1, "scale": 1}]))[0] == (AdapterUse(digests["voice"], 1.0),)
    api.catalog.adapters.delete(GLOSS, "tone")
    assert (await used())[0] == (), "a scale is the adapter's, not the number's"
    for body in ([{"id": 9, "scale": 1}], [{"id": -1, "scale": 1}], [{"id": 0, "scale": 1000}], {"id": 0, "scale": 1}):
        refused = await client.post("/lora-adapters", params={"model": "gloss"}, json=body)
        assert refused.status_code in (400, 404), body
    assert (await client.get("/lora-adapters")).json() == [], "it is not clear which model is meant"


async def test_a_preset_s_adapters_go_with_every_request_under_its_name(client, api, digests):
    variant = api.catalog.resolve("gloss:F16")
    api.catalog.copy(variant, parse_ref("gloss:mine"))
    api.services.presets.put(parse_ref("gloss:mine"), variant, Preset(adapters=(AdapterUse("tone"),)))
    for path, body in (
        ("/api/generate", {"prompt": "Hi", "raw": True}),
        ("/api/chat", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        answer = await client.post(path, json={"model": "gloss:mine", "stream": False, **body})
        assert answer.status_code == 200, answer.text
        assert api.pool.submitted[-1][1].adapters == (AdapterUse(digests["tone"], 1.0),)
    await client.post("/api/generate", json={"model": "gloss:F16", "prompt": "Hi", "raw": True, "stream": False})
    assert api.pool.submitted[-1][1].adapters == ()


async def test_a_name_copied_to_another_model_takes_its_adapters_along(client, api, digests):
    variant = api.catalog.resolve("gloss:F16")
    api.catalog.copy(variant, parse_ref("gloss:mine"))
    api.services.presets.put(parse_ref("gloss:mine"), variant, Preset(adapters=(AdapterUse("tone"),)))
    copied = await client.post("/api/copy", json={"source": "gloss:mine", "destination": "theirs"})
    assert copied.status_code == 200, copied.text
    assert (await client.get("/v1/adapters/theirs/tone")).json()["digest"] == digests["tone"]
    await client.request("DELETE", "/api/delete", json={"model": "theirs"})
    assert (await client.get("/v1/adapters/gloss/tone")).status_code == 200


async def test_adding_one_is_a_job_and_what_cannot_be_begun_is_refused_at_once(client, api, digests, tmp_path):
    nowhere = f"sha256:{'0' * 64}"
    for body, status, code in (
        ({"digest": nowhere}, 404, "blob_not_found"),
        ({"files": {"adapter_config.json": nowhere}}, 404, "blob_not_found"),
        ({"digest": "sha256:x"}, 400, "invalid_name"),
        ({"path": str(tmp_path / "missing")}, 400, "invalid_parameter"),
        ({}, 400, "invalid_parameter"),
        ({"digest": nowhere, "path": "/x"}, 400, "invalid_parameter"),
        ({"files": {}}, 400, "invalid_parameter"),
        ({"digest": nowhere, "model": "nobody"}, 404, "model_not_found"),
        ({"digest": nowhere, "name": "a/b"}, 400, "invalid_parameter"),
    ):
        answer = await client.post("/v1/adapters", json={"model": "gloss", "name": "new", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (body, answer.text)
    body = {"model": "gloss", "name": "new", "digest": digests["tone"]}
    accepted = await client.post("/v1/adapters", json=body)
    assert accepted.status_code == 202
    job = accepted.json()
    assert (job["kind"], job["model"], job["status"]) == ("adapter", "gloss:Q8_0", "queued")
    assert accepted.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (await client.post("/v1/adapters", json=body)).json()["id"] == job["id"], "the one under way is found"
    queue: JobQueue = api.queue
    assert digests["tone"] in queue.active_digests()


async def test_with_keys_paths_lie_in_the_folders_that_are_open(make_api, tmp_path):
    from service.api.auth import hash_keys
    from tests.unit.api.conftest import KEY

    api = make_api(api_key_hashes=hash_keys([KEY]), import_folders=(str(tmp_path / "open"),))
    api.add("gloss", "F16")
    (tmp_path / "open" / "tone").mkdir(parents=True)
    async with api.client(headers={"X-API-Key": KEY}) as client:
        for path, status in ((tmp_path / "open" / "tone", 202), (tmp_path / "closed", 403)):
            body = {"model": "gloss", "name": "tone", "path": str(path)}
            assert (await client.post("/v1/adapters", json=body)).status_code == status
