"""The error table, pydantic's problems as ours, and the framing of events."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.api.laboratory_bodies import StoredDigest
from service.api.responses import (
    TYPES,
    Dialect,
    dialect_of,
    error_body,
    error_from,
    error_from_validation,
    error_response,
    retry_after,
    status_of,
)
from service.api.shapes import ServerPath
from service.api.streams import encode, sse
from service.domain import errors

# Written out, so that a change of a status is a change of this file.
EXPECTED = {
    "internal_error": 500,
    "invalid_request": 400,
    "malformed_body": 400,
    "invalid_parameter": 400,
    "invalid_grammar": 400,
    "invalid_name": 400,
    "unknown_quantization": 400,
    "context_length_exceeded": 400,
    "no_chat_template": 400,
    "template_error": 400,
    "not_supported": 400,
    "previous_response_not_found": 400,
    "lossy_source": 400,
    "importance_matrix_required": 400,
    "quantization_not_applicable": 400,
    "label_mismatch": 400,
    "invalid_api_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "blob_not_found": 404,
    "job_not_found": 404,
    "response_not_found": 404,
    "dataset_not_found": 404,
    "importance_matrix_not_found": 404,
    "adapter_not_found": 404,
    "desired_not_found": 404,
    "route_not_found": 404,
    "conflict": 409,
    "name_taken": 409,
    "blob_corrupt": 409,
    "pinned": 409,
    "job_finished": 409,
    "body_too_large": 413,
    "range_not_satisfiable": 416,
    "unsupported_media_type": 415,
    "invalid_model": 422,
    "digest_mismatch": 400,
    "busy": 429,
    "queue_full": 429,
    "unavailable": 503,
    "worker_died": 503,
    "being_made": 503,
    "worker_quarantined": 503,
    "load_failed": 503,
    "does_not_fit": 503,
    "shutting_down": 503,
    "slow_reader": 503,
    "remote_failed": 502,
    "remote_refused": 502,
    "deadline_exceeded": 504,
    "disk_full": 507,
    "quota_exceeded": 507,
    "job_failed": 500,
    "job_child_died": 500,
    "job_interrupted": 500,
    "quantization_failed": 500,
}

LEAVES = sorted(
    {leaf for leaf in errors.leaves() if leaf.__module__ == errors.__name__}, key=lambda leaf: leaf.__name__
)


def test_the_table_above_has_every_code_and_no_other():
    assert {leaf.code for leaf in LEAVES} == set(EXPECTED)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_error_is_one_string_in_ollamas_dialect(leaf):
    response = error_response(leaf("It went wrong; try again."), Dialect.OLLAMA)
    assert response.status_code == (503 if issubclass(leaf, errors.Busy) else EXPECTED[leaf.code])
    full = "server busy, please try again.  maximum pending requests exceeded"
    message = full if leaf is errors.QueueFull else "It went wrong; try again."
    assert json.loads(response.body) == {"error": message, "code": leaf.code}


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_error_has_anthropics_shape_in_its_dialect(leaf):
    response = error_response(leaf("It went wrong; try again.", param="model"), Dialect.ANTHROPIC)
    assert response.status_code == EXPECTED[leaf.code]
    body = json.loads(response.body)
    others = {413: "request_too_large", 500: "api_error", 503: "overloaded_error", 507: "api_error"}
    kind = others.get(response.status_code, TYPES[response.status_code])
    details = {"error_code": leaf.code, "param": "model"}
    assert body == {
        "type": "error",
        "error": {"type": kind, "message": "It went wrong; try again.", "details": details},
    }


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_error_has_llama_servers_shape_in_its_dialect(leaf):
    response = error_response(leaf("It went wrong; try again.", param="model"), Dialect.LLAMA_SERVER)
    assert response.status_code == EXPECTED[leaf.code]
    error = json.loads(response.body)["error"]
    others = {
        "context_length_exceeded": "exceed_context_size_error",
        "not_supported": "not_supported_error",
        "busy": "unavailable_error",
        "queue_full": "unavailable_error",
    }
    assert error["type"] == others.get(leaf.code, TYPES[response.status_code])
    assert (error["code"], error["reason"], error["param"]) == (response.status_code, leaf.code, "model")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/messages", Dialect.ANTHROPIC),
        ("/v1/messages/count_tokens", Dialect.ANTHROPIC),
        ("/v1/rerank", Dialect.LLAMA_SERVER),
        ("/completion", Dialect.LLAMA_SERVER),
        ("/v1/completions", Dialect.OPENAI),
        ("/v1/chat/completions/input_tokens", Dialect.OPENAI),
        ("/api/chat", Dialect.OLLAMA),
        ("/v1/models", Dialect.NATIVE),
    ],
)
def test_a_path_belongs_to_one_dialect(path, dialect):
    assert dialect_of(path) is dialect


@pytest.mark.parametrize("dialect", [Dialect.NATIVE, Dialect.OPENAI])
@pytest.mark.parametrize("leaf", LEAVES)
def test_every_error_has_its_status_and_a_whole_body(leaf, dialect):
    error = leaf("It went wrong; try again.", param="model")
    response = error_response(error, dialect)
    assert response.status_code == status_of(leaf) == EXPECTED[leaf.code]
    body = json.loads(response.body)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "type", "param"}
    assert body["error"]["message"] == "It went wrong; try again."
    assert body["error"]["param"] == "model"
    assert body["error"]["type"] == TYPES[response.status_code]
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("leaf", LEAVES)
def test_retry_after_is_sent_where_waiting_helps(leaf):
    waits = issubclass(leaf, errors.Busy | errors.Unavailable) and leaf is not errors.DoesNotFit
    assert ("retry-after" in error_response(leaf("x"), Dialect.NATIVE).headers) == waits
    assert error_response(leaf("x", retry_after_seconds=7), Dialect.NATIVE).headers["retry-after"] == "7"


def test_retry_after_is_at_least_one_second():
    assert retry_after(errors.QueueFull("x", retry_after_seconds=0)) == 1


def test_a_missing_key_names_the_scheme():
    assert error_response(errors.Unauthorized("x"), Dialect.NATIVE).headers["www-authenticate"] == "Bearer"


def test_openai_hears_its_own_word_for_a_full_queue():
    assert error_body(errors.QueueFull("x"), Dialect.OPENAI)["error"]["code"] == "rate_limit_exceeded"
    assert error_body(errors.QueueFull("x"), Dialect.NATIVE)["error"]["code"] == "queue_full"


def test_a_carried_error_comes_back_as_its_class():
    error = error_from("context_length_exceeded", "Too long; shorten it.", "prompt", 3)
    assert type(error) is errors.PromptTooLong
    assert (error.message, error.param, error.retry_after_seconds) == ("Too long; shorten it.", "prompt", 3)
    assert type(error_from("no_such_code", "x")) is errors.InternalError


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    content: str


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    turns: list[_Turn] = []
    stop: str | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=2)] = ""


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"turns": [{"content": 1}]}, "turns[0].content"),
        ({"turns": [{"content": "x"}, {"content": "x", "more": 1}]}, "turns[1].more"),
        ({"turns": [{}]}, "turns[0].content"),
        ({"stop": ["", "x"]}, "stop[0]"),
        ({"stop": 5}, "stop"),
        ({"x" * 500: 5}, "x" * 100 + "..."),
    ],
)
def test_a_problem_names_its_field_and_never_its_value(value, param):
    with pytest.raises(ValidationError) as caught:
        _Body.model_validate(value)
    problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in caught.value.errors()]
    error = error_from_validation(problems)
    assert isinstance(error, errors.InvalidParameter)
    assert error.param == param
    assert len(error.message) < 400


@given(st.text())
def test_an_event_is_one_line_of_json_for_every_splitter(text):
    frame = sse({"text": text}, event="token").decode() if text.isprintable() or _encodable(text) else ""
    if not frame:
        return
    event, data, *rest = frame.splitlines()
    assert (event, rest) == ("event: token", [""])
    assert msgspec.json.decode(data.removeprefix("data: ")) == {"text": text}


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_unicode_line_ends_are_escaped():
    assert encode("\u2028\u2029\x85") == b'"\\u2028\\u2029\\u0085"'


def test_an_id_comes_before_its_data():
    assert sse({}, event="status", event_id=3) == b"id: 3\nevent: status\ndata: {}\n\n"


class _Fields(BaseModel):
    path: ServerPath = "/a"
    matrix: Literal["auto"] | StoredDigest | None = None
    levels: list[str] = Field(["a"], min_length=1, max_length=2)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"path": "a.gguf"}, "path: input should be an absolute path on the server, from /."),
        (
            {"matrix": "nope"},
            "matrix: input should be a digest, sha256: and 64 lower-case hexadecimal digits or 'auto'.",
        ),
        ({"levels": []}, "levels: there should be at least 1 of them, not 0."),
        ({"levels": ["a"] * 3}, "levels: there should be at most 2 of them."),
    ],
)
def test_what_is_wrong_with_a_field_is_said_in_words_and_not_in_patterns(body: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as problem:
        _Fields.model_validate(body)
    placed = [{**one, "loc": ("body", *one["loc"])} for one in problem.value.errors()]
    assert error_from_validation(placed).message.startswith(words.rstrip("."))
