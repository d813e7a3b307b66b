"""Bundles over HTTP: which variants go out, what a request to take one in may say, and what the job enters."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.api.auth import hash_key
from service.api.ollama_shapes import MAX_TEMPLATE_CHARACTERS, OllamaOptions
from service.domain import presets
from service.domain.errors import InvalidParameter
from service.domain.evaluation import Card, TaskScore
from service.domain.jobs import JobKind, JobStatus
from service.domain.names import parse_ref
from service.domain.presets import Preset, check_preset
from service.store.bundles.reading import read_bundle
from tests.unit.api.conftest import KEY, Api, MakeApi

URL = "/v1/models/gloss/bundle"


def labels(content: bytes, folder: Path) -> list[str]:
    path = folder / "found.tar"
    path.write_bytes(content)
    return [file.tag for file in read_bundle(str(path)).files]


async def bundle(client: httpx.AsyncClient, folder: Path) -> Path:
    path = folder / "gloss.tar"
    path.write_bytes((await client.get(URL)).content)
    return path


async def test_all_variants_or_those_named_go_out(api: Api, client: httpx.AsyncClient, tmp_path: Path) -> None:
    api.catalog.copy(api.catalog.resolve("gloss:Q8_0"), parse_ref("gloss:prod"))
    for query, expected in (
        ("", ["F16", "Q8_0"]),
        ("?levels=q8_0", ["Q8_0"]),
        ("?levels=prod,F16", ["F16", "Q8_0"]),
        ("?levels=Q8_0&levels=F16&levels=prod", ["F16", "Q8_0"]),
    ):
        answer = await client.get(URL + query)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/x-tar")
        assert labels(answer.content, tmp_path) == expected
        assert answer.headers["Content-Length"] == str(len(answer.content))


async def test_the_tag_changes_when_the_bundle_does(api: Api, client: httpx.AsyncClient) -> None:
    tag = (await client.head(URL)).headers["ETag"]
    assert (await client.get(URL, headers={"If-None-Match": tag})).status_code == 304
    api.services.laboratory.add_card(
        api.catalog.resolve("gloss:Q8_0").id, Card("here", "b1", 1.0, tasks=(TaskScore("words", "sha256:0", 1, 2),))
    )
    assert (await client.head(URL)).headers["ETag"] != tag


@pytest.mark.parametrize(
    ("url", "status", "code", "param"),
    [
        ("/v1/models/nothing/bundle", 404, "model_not_found", "model"),
        ("/v1/models/gloss:F16/bundle", 400, "invalid_name", "ref"),
        (f"{URL}?levels=Q2_K", 404, "model_not_found", "levels"),
        (f"{URL}?levels=", 400, "invalid_name", "levels"),
        (f"{URL}?levels=../x", 400, "invalid_name", "levels"),
    ],
)
async def test_what_is_no_bundle_is_refused(
    client: httpx.AsyncClient, url: str, status: int, code: str, param: str
) -> None:
    answer = await client.get(url)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)


async def test_a_damaged_variant_is_not_sent(api: Api, client: httpx.AsyncClient) -> None:
    api.catalog.mark_corrupt(api.catalog.resolve("gloss:Q8_0").digest, True)
    assert (await client.get(URL)).json()["error"]["code"] == "blob_corrupt"
    assert (await client.get(f"{URL}?levels=F16")).status_code == 200


async def test_a_bundle_is_a_job_whose_steps_are_its_variants(
    api: Api, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = await bundle(client, tmp_path)
    for body in ({"path": str(path)}, {"path": str(path), "name": "library/other"}):
        answer = await client.post("/v1/bundles", json=body)
        assert answer.status_code == 202
        job = answer.json()
        assert (job["kind"], [step["name"] for step in job["steps"]]) == ("bundle", ["F16", "Q8_0"])
        assert {step["detail"] for step in job["steps"]} == {"already stored"}
    (newest, _) = api.queue.list(JobStatus.QUEUED, 10)
    assert (newest.kind, newest.spec.name) == (JobKind.BUNDLE, "other")  # type: ignore[union-attr]


async def test_an_uploaded_bundle_is_named_by_its_digest(api: Api, client: httpx.AsyncClient, tmp_path: Path) -> None:
    digest = api.put((await bundle(client, tmp_path)).read_bytes())
    assert (await client.post("/v1/bundles", json={"digest": digest})).status_code == 202
    missing = await client.post("/v1/bundles", json={"digest": "sha256:" + "0" * 64})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "blob_not_found")


async def test_a_name_that_is_taken_is_refused_before_anything_is_read(
    api: Api, client: httpx.AsyncClient, tmp_path: Path
) -> None:
    path = await bundle(client, tmp_path)
    api.add("other", "Q8_0", content=b"another file")
    answer = await client.post("/v1/bundles", json={"path": str(path), "name": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "name_taken")


async def test_a_body_says_one_place_and_a_name_without_a_tag(client: httpx.AsyncClient, tmp_path: Path) -> None:
    path = str(await bundle(client, tmp_path))
    for body in (
        {},
        {"path": path, "digest": "sha256:" + "0" * 64},
        {"path": path, "name": "x:tag"},
        {"path": "x.tar"},
    ):
        assert (await client.post("/v1/bundles", json=body)).status_code == 400


async def test_what_is_no_archive_is_refused_with_the_remedy(client: httpx.AsyncClient, tmp_path: Path) -> None:
    path = await bundle(client, tmp_path)
    for content, words in (
        (b"\x1f\x8b\x08" + bytes(600), "gunzip"),
        (b"GGUF" + bytes(600), "no tar archive"),
        (path.read_bytes()[:3000], "middle of a member"),
        (b"", "oci-layout"),
    ):
        path.write_bytes(content)
        answer = await client.post("/v1/bundles", json={"path": str(path)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_model")
        assert words in answer.json()["error"]["message"]
    gone = await client.post("/v1/bundles", json={"path": str(tmp_path / "gone")})
    assert (gone.status_code, str(tmp_path) in gone.text) == (400, False)


async def test_a_caller_with_a_key_may_only_name_files_in_open_folders(make_api: MakeApi, tmp_path: Path) -> None:
    api = make_api(api_key_hashes=(hash_key(KEY),), import_folders=(str(tmp_path / "open"),))
    async with api.client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        answer = await client.post("/v1/bundles", json={"path": str(tmp_path / "gloss.tar")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")


async def test_members_are_of_the_layout_and_no_others(client: httpx.AsyncClient) -> None:
    with tarfile.open(fileobj=io.BytesIO((await client.get(URL)).content)) as archive:
        assert all(
            name in ("oci-layout", "index.json") or name.startswith("blobs/sha256/") for name in archive.getnames()
        )


@pytest.mark.parametrize("name", sorted(OllamaOptions.model_fields))
def test_a_bundled_parameter_is_taken_exactly_where_create_would_take_it(name: str) -> None:
    values: list[Any] = [True, "x", "", "x" * 256, "x" * 257, [], ["x"] * 16, ["x"] * 17, [""], math.nan, math.inf]
    for edge in (0, 1, 2, 5, 10, 100, 1_000_000, 1 << 20, (1 << 63) - 1):
        values += [edge, -edge, edge + 1, -edge - 1, edge + 0.5, float(edge), -float(edge)]
    for value in values:
        try:
            OllamaOptions.model_validate({name: value})
        except ValidationError:
            with pytest.raises(InvalidParameter):
                check_preset(Preset(parameters={name: value}))
        else:
            assert check_preset(Preset(parameters={name: value})).parameters == {name: value}


def test_a_bundled_template_may_be_as_long_as_one_that_is_sent() -> None:
    assert presets.MAX_TEMPLATE_CHARACTERS == MAX_TEMPLATE_CHARACTERS
