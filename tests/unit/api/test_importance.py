"""`/v1/importance-matrices` on a real store."""

from __future__ import annotations

import pytest

from service.domain.importance import ImportanceFacts, TensorStatistics
from service.domain.recipes import Recipe

STATISTICS = TensorStatistics("blk.0.ffn_down.weight", 64, 1, 0, 10.0, 0.5, 0.0, 2.0, 0.25, 0.75, 3.5, 0.1, 0.9)


@pytest.fixture
def matrix(api):
    content = b"a matrix" * 1000
    source = api.catalog.resolve("gloss:F16")
    facts = ImportanceFacts(2, 512, ("calibration",), (STATISTICS,))
    return api.services.laboratory.add_importance_matrix(
        source.model, api.put(content), len(content), facts, made_from="x", source_digest=source.digest
    )


async def test_matrices_are_listed_by_model_newest_first(client, api, matrix):
    other = api.services.laboratory.add_importance_matrix(
        api.add("other", "F16").model, api.put(b"second"), 6, ImportanceFacts(0, 0, (), ()), made_from="y"
    )
    listed = (await client.get("/v1/importance-matrices")).json()
    assert listed["object"] == "list"
    assert [row["digest"] for row in listed["data"]] == [other.digest, matrix.digest]
    (row,) = (await client.get("/v1/importance-matrices?model=GLOSS:x")).json()["data"]
    assert row == {
        "digest": matrix.digest,
        "model": "gloss",
        "size_bytes": 8000,
        "source": "gloss:F16",
        "source_digest": matrix.source_digest,
        "datasets": ["calibration"],
        "dataset_digest": None,
        "chunks": 2,
        "chunk_tokens": 512,
        "tensors": 1,
        "created_at": matrix.created_at,
    }
    assert listed["data"][0]["source"] is None


async def test_one_matrix_has_the_figures_of_its_tensors(client, matrix):
    shown = (await client.get(f"/v1/importance-matrices/{matrix.digest}")).json()
    (tensor,) = shown["statistics"]
    assert (tensor["name"], tensor["mean"], tensor["cosine"]) == ("blk.0.ffn_down.weight", 0.5, 0.9)
    assert shown["tensors"] == 1


async def test_the_file_comes_as_it_is(client, matrix):
    answer = await client.get(f"/v1/importance-matrices/{matrix.digest}?format=gguf")
    assert answer.content == b"a matrix" * 1000
    assert answer.headers["content-length"] == "8000"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert 'filename="gloss-' in answer.headers["content-disposition"]


async def test_a_matrix_that_a_variant_was_made_with_stays(client, api, matrix):
    source = api.catalog.resolve("gloss:F16")
    api.add("gloss:hq", "Q4_K_M", source=source, recipe=Recipe("Q4_K_M", importance_matrix=matrix.digest))
    path = f"/v1/importance-matrices/{matrix.digest}"
    answer = await client.delete(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    await client.delete("/v1/variants/gloss:hq-Q4_K_M")
    answer = await client.delete(path)
    assert answer.json() == {"id": matrix.digest, "object": "importance_matrix", "deleted": True}
    assert (await client.get(path)).json()["error"]["code"] == "importance_matrix_not_found"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("sha256:" + "0" * 64, 404, "importance_matrix_not_found"),
        ("sha256:0", 400, "invalid_name"),
        ("sha256:" + "0" * 64 + "?format=dat", 400, "invalid_parameter"),
    ],
)
async def test_a_matrix_that_is_not_there_is_told(client, path, status, code):
    answer = await client.get(f"/v1/importance-matrices/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
