"""The store looked after, through the API: what is asked for, what is refused, what is shown."""

from __future__ import annotations

import asyncio

import pytest

from service.domain.jobs import JobKind, RebuildSpec, VerifySpec
from service.store import care


async def test_verify_queues_a_job_for_models_variants_or_everything(client, api) -> None:
    one = await client.post("/v1/verify", json={"models": ["gloss"], "repair": True})
    assert (one.status_code, one.json()["kind"], one.json()["model"]) == (202, "verify", "gloss")
    assert one.headers["Location"] == f"/v1/jobs/{one.json()['id']}"
    every = await client.post("/v1/verify")
    assert [step["name"] for step in every.json()["steps"]] == ["gloss:F16", "gloss:Q8_0"]
    again = await client.post("/v1/verify", json={})
    assert again.json()["id"] == every.json()["id"]
    specs = {job.spec for job in api.queue.list()}
    assert specs == {VerifySpec(("gloss",), repair=True), VerifySpec()}
    assert (await client.post("/v1/verify", json={"models": ["none"]})).status_code == 404
    assert (await client.post("/v1/verify", json={"models": ["../x"]})).status_code == 400


async def test_a_repair_reads_what_is_not_known_to_be_damaged_first(client, api) -> None:
    variant = api.catalog.resolve("gloss:Q8_0")
    asked = await client.post("/v1/variants/gloss:Q8_0/repair")
    assert (asked.status_code, asked.json()["kind"]) == (202, "verify")
    assert api.queue.list()[0].spec == VerifySpec((variant.name,), repair=True)
    care.condemn(api.catalog, api.blobs, variant.digest)
    rebuilt = await client.post("/v1/variants/gloss:Q8_0/repair")
    assert (rebuilt.status_code, rebuilt.json()["kind"]) == (202, "rebuild")
    assert isinstance(api.queue.list()[0].spec, RebuildSpec)


async def test_a_missing_file_is_seen_by_a_repair_and_an_import_cannot_be_made_again(client, api) -> None:
    variant = api.catalog.resolve("gloss:F16")
    api.blobs.path(variant.digest).unlink()
    refused = await client.post("/v1/variants/gloss:F16/repair")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "blob_corrupt")
    assert "import the same file again" in refused.json()["error"]["message"]
    assert (await client.get("/v1/variants/gloss:F16")).json()["corrupt"]
    assert api.queue.list() == []


async def test_the_synchronous_check_quarantines_unloads_and_takes_back(client, api) -> None:
    variant = api.catalog.resolve("gloss:Q8_0")
    path = api.blobs.path(variant.digest)
    content = path.read_bytes()
    api.pool.loaded[variant.digest] = variant
    path.chmod(0o644)
    path.write_bytes(content[::-1])
    assert not (await client.post("/v1/variants/gloss:Q8_0/verify")).json()["intact"]
    assert not path.exists()
    while api.pool.loaded:
        await asyncio.sleep(0)
    store = (await client.get("/v1/store")).json()
    assert (store["quarantined"], store["quarantined_bytes"]) == (1, len(content))
    assert store["damaged"] == ["gloss:Q8_0"]
    api.blobs.quarantine.joinpath(path.name).write_bytes(content)
    assert (await client.post("/v1/variants/gloss:Q8_0/verify")).json()["intact"]
    assert path.read_bytes() == content
    assert (await client.get("/v1/store")).json()["damaged"] == []


async def test_a_pin_is_shown_and_refuses_deletion_by_every_route(client, api) -> None:
    pinned = await client.post("/v1/variants/gloss:Q8_0/pin")
    assert (pinned.status_code, pinned.json()["pinned"]) == (200, True)
    listed = (await client.get("/v1/variants")).json()["data"]
    assert {row["name"]: row["pinned"] for row in listed} == {"gloss:F16": False, "gloss:Q8_0": True}
    for method, path, body in (
        ("DELETE", "/v1/variants/gloss:Q8_0", None),
        ("DELETE", "/v1/models/gloss", None),
        ("DELETE", "/api/delete", {"model": "gloss:Q8_0"}),
    ):
        refused = await client.request(method, path, json=body)
        assert refused.status_code == 409, path
    assert (await client.delete("/v1/variants/gloss:Q8_0")).json()["error"]["code"] == "pinned"
    assert (await client.get("/v1/store")).json()["pinned"] == 1
    assert not (await client.delete("/v1/variants/gloss:Q8_0/pin")).json()["pinned"]
    assert (await client.delete("/v1/variants/gloss:Q8_0")).status_code == 200
    assert (await client.post("/v1/variants/none/pin")).status_code == 404


async def test_deleting_a_source_names_what_can_no_longer_be_made_again(client, api) -> None:
    await client.post("/v1/models/copy", json={"source": "gloss:F16", "destination": "keep"})
    assert (await client.delete("/v1/variants/gloss:F16")).json()["orphaned"] == []
    assert (await client.delete("/v1/models/keep")).json()["orphaned"] == ["gloss:Q8_0"]


async def test_prune_says_first_and_then_does_just_that(client, api) -> None:
    assert (await client.post("/v1/prune")).json()["data"] == []
    asked = {"levels": ["q8_0"], "models": ["gloss"]}
    said = (await client.post("/v1/prune", json=asked)).json()
    size = api.blobs.size(api.catalog.resolve("gloss:Q8_0").digest)
    assert said == {
        "object": "list",
        "dry_run": True,
        "size_bytes": size,
        "data": [
            {"kind": "variant", "name": "gloss:Q8_0", "size_bytes": size, "reason": "can be made again of gloss:F16"}
        ],
    }
    done = (await client.post("/v1/prune", json={**asked, "dry_run": False})).json()
    assert done["data"] == said["data"]
    assert [row["name"] for row in (await client.get("/v1/variants")).json()["data"]] == ["gloss:F16"]
    assert (await client.post("/v1/prune", json={"levels": ["Q99"]})).json()["error"]["param"] == "levels"
    assert (await client.post("/v1/prune", json={"age_seconds": 1})).status_code == 400


async def test_prune_leaves_what_is_in_memory_wished_for_or_waited_for(client, api) -> None:
    variant = api.catalog.resolve("gloss:Q8_0")
    api.pool.loaded[variant.digest] = variant
    assert (await client.post("/v1/prune", json={"unused_days": 0})).json()["data"] == []
    api.pool.loaded.clear()
    await client.put("/v1/models/gloss/desired", json={"levels": ["Q8_0"]})
    assert (await client.post("/v1/prune", json={"unused_days": 0})).json()["data"] == []
    await client.delete("/v1/models/gloss/desired")
    for job in api.queue.list():
        api.queue.request_cancel(job.id)
    assert len((await client.post("/v1/prune", json={"unused_days": 0})).json()["data"]) == 1
    await client.post("/v1/variants/gloss:Q8_0/rebuild")
    assert api.queue.has_active((JobKind.REBUILD,))
    assert (await client.post("/v1/prune", json={"unused_days": 0})).json()["data"] == []


async def test_the_store_says_what_it_holds(client, api) -> None:
    store = (await client.get("/v1/store")).json()
    sizes = [blob.size_bytes for blob in api.catalog.blobs()]
    assert (store["models"], store["variants"], store["blobs"]) == (1, 2, 2)
    assert store["blob_bytes"] == store["taken_bytes"] == sum(sizes)
    assert store["quota_bytes"] is None
    assert store["room_bytes"] <= store["free_bytes"]
    assert store["oldest_verified_at"] == min(blob.created_at for blob in api.catalog.blobs())


@pytest.mark.parametrize("body", [{"digest": "sha256:" + "0" * 64}, {"from": "hf.co/owner/repo"}])
async def test_only_a_path_is_adopted(client, body: dict[str, str]) -> None:
    refused = await client.post("/v1/models", json={"name": "x", "adopt": "link", **body})
    assert refused.status_code == 400
    assert "path" in refused.json()["error"]["message"]


async def test_the_list_is_worked_out_once_for_as_long_as_nothing_changes(client, api) -> None:
    first = (await client.get("/v1/variants")).content
    assert (await client.get("/v1/variants")).content == first
    variant = api.catalog.resolve("gloss:Q8_0")
    api.pool.loaded[variant.digest] = variant
    assert [row["loaded"] for row in (await client.get("/v1/variants")).json()["data"]] == [False, True]
    api.pool.loaded.clear()
    api.catalog.delete_variant(variant)
    assert len((await client.get("/v1/variants")).json()["data"]) == 1
    assert len((await client.get("/v1/variants", params={"model": "other"})).json()["data"]) == 0
